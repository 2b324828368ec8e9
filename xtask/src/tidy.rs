//! House rules that no compiler holds, each read off one file at a time.
//!
//! Pure: a path and a text in, lines of the form `path:line: rule` out. The rules are those of STYLE.md.

use std::path::Path;

/// The most lines a source file may have outside tests; above that it is rarely one noun.
const LINES_MAX: usize = 600;
/// File names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc", "manager"];
/// The only files that may hold unsafe code: each is named for the boundary that it fences.
const UNSAFE_FILES: &[&str] = &[
    "clock.rs",
    "timestamp.rs",
    "ioctl.rs",
    "ffi.rs",
    "kvm.rs",
    "memory.rs",
    "mapping.rs",
    "iovec.rs",
    "completion.rs",
    "handle.rs",
    "io_uring.rs",
    "ring.rs",
    "signal.rs",
    "descriptor.rs",
    "tap.rs",
    "syscall.rs",
    "namespace.rs",
    "process.rs",
];
/// Words that mark work that was left undone.
const UNDONE: &[&str] = &["TO\x44O", "FIX\x4dE", "XX\x58:", "HAC\x4b"];

/// Says what is untidy in one file.
pub(crate) fn look(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if EMPTY_NAMES.contains(&name) {
        found.push(format!("{}:1: the name says nothing: name the noun that it owns", path.display()));
    }
    // Prose may speak of such words.
    let is_prose = path.extension().is_some_and(|extension| extension == "md");
    for (number, line) in text.lines().enumerate() {
        let at = format!("{}:{}", path.display(), number + 1);
        if let Some(word) = UNDONE.iter().find(|word| !is_prose && line.contains(*word)) {
            found.push(format!("{at}: {word} marks undone work: do it, or write down what is left where readers look"));
        }
        if line.ends_with([' ', '\t']) && path.extension().is_none_or(|extension| extension != "golden") {
            found.push(format!("{at}: white space at the end of the line"));
        }
    }
    if path.extension().is_some_and(|extension| extension == "rs") {
        found.extend(look_at_rust(path, text));
    }
    if path.ends_with("Cargo.toml") && text.contains("[package]") && !text.contains("[lints]\nworkspace = true") {
        found.push(format!("{}:1: the crate does not take the workspace's lints", path.display()));
    }
    found
}

fn look_at_rust(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let is_test = path.components().any(|part| part.as_os_str() == "tests") || path.ends_with("tests.rs");
    if !text.lines().take(5).any(|line| line.starts_with("//!")) {
        found.push(format!("{}:1: no module header (//!)", path.display()));
    }
    let code_lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    if code_lines > LINES_MAX && !is_test {
        found.push(format!("{}:1: {code_lines} lines: is it still one noun? ({LINES_MAX} at most)", path.display()));
    }
    let may_be_unsafe = UNSAFE_FILES.iter().any(|end| path.ends_with(end));
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let at = format!("{}:{}", path.display(), number + 1);
        if code.contains(concat!("#[al", "low(")) {
            found.push(format!("{at}: use #[expect(.., reason = \"..\")]"));
        }
        if !may_be_unsafe && !is_test && has_unsafe(code) {
            found.push(format!("{at}: unsafe outside of the files that fence it"));
        }
    }
    found
}

/// Whether a line of code opens an unsafe block, function or implementation.
fn has_unsafe(code: &str) -> bool {
    ["{", "fn ", "impl ", "extern "].iter().any(|next| code.contains(&["unsafe ", next].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> String {
        look(Path::new(path), text).join("\n")
    }

    #[test]
    fn a_tidy_file_has_nothing_to_say() {
        assert_eq!(found("a/src/session.rs", "//! What it owns.\n\nfn main() {}\n"), "");
    }

    #[test]
    fn each_rule_finds_its_own_fault() {
        assert!(found("a/src/session.rs", "fn main() {}\n").contains("no module header"));
        assert!(found("a/src/utils.rs", "//! x\n").contains("the name says nothing"));
        assert!(found("a/src/b.rs", "//! x\nfn f() { unsafe { g() } }\n").contains("b.rs:2: unsafe outside"));
        assert_eq!(found("a/src/ffi.rs", "//! x\nfn f() { unsafe { g() } }\n"), "");
        assert!(found("a/src/b.rs", "//! x\n// FIX\u{4d}E later\n").contains("marks undone work"));
        assert!(found("a/src/b.rs", "//! x \n").contains("white space"));
        assert!(found("a/src/b.rs", &format!("//! x\n{}", "fn f() {}\n".repeat(LINES_MAX))).contains("one noun"));
        assert!(found("a/src/b.rs", concat!("//! x\n#[al", "low(dead_code)]\n")).contains("use #[expect"));
        assert!(found("a/Cargo.toml", "[package]\nname = \"a\"\n").contains("does not take the workspace's lints"));
    }

    #[test]
    fn tests_at_the_end_of_a_file_do_not_count_as_its_length() {
        let text = format!("//! x\n#[cfg(test)]\nmod tests {{\n{}}}\n", "// a line\n".repeat(LINES_MAX));
        assert_eq!(found("a/src/b.rs", &text), "");
    }
}
