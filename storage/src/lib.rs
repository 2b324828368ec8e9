//! Volumes and images: backends, the librbd binding, formats.
