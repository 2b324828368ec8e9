//! Guests as tests see them: a root shell on a console.

pub mod shell;

pub use shell::{Answer, Console, Shell};
