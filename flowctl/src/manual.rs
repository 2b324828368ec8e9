//! The manual pages and shell completions, made from the command line's own description.

use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// Writes one page for the program and one for each command below it into `directory`. Returns how many.
///
/// # Errors
/// What making the directory or writing a page gives.
pub fn write_pages(command: Command, directory: &Path) -> io::Result<usize> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command, directory)?;
    Ok(std::fs::read_dir(directory)?.count())
}

/// The completion script of a shell.
#[must_use]
pub fn completion(command: &mut Command, shell: Shell) -> String {
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}
