//! The program: see the library of this crate.

fn main() -> std::process::ExitCode {
    node_agent::cli::main()
}
