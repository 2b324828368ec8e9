//! The shared nouns in checked form, and their versioned wire forms.

#![forbid(unsafe_code)]
