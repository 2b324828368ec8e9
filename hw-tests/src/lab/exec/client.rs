//! The client's side of one command in a host.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::guest::Console;

use super::frame::{Ending, Frame, Request};

/// Longest time of a command for which the caller names none.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(60);
/// How much longer than the command's own limit we wait for the host to say so.
const MARGIN: Duration = Duration::from_secs(20);
const CHUNK_BYTES: usize = 32 * 1024;
/// Most of a stream's standard error that is kept for an error message.
const WORDS_BYTES_MAX: usize = 4096;

/// What a command that ended left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub ending: Ending,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Whether it exited with status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.ending == Ending::Code(0)
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// A command that is being put together.
#[derive(Debug)]
pub struct Call<'host, C> {
    connect: C,
    host: &'host str,
    request: Request,
    input: Vec<u8>,
}

impl<'host, C: FnOnce() -> Result<TcpStream>> Call<'host, C> {
    /// A command for the host called `host`, reached by `connect`.
    pub fn new(host: &'host str, connect: C, program: &str) -> Self {
        let request = Request {
            words: vec![program.to_owned()],
            environment: Vec::new(),
            directory: None,
            timeout_ms: u64::try_from(DEFAULT_LIMIT.as_millis()).unwrap_or(u64::MAX),
        };
        Self { connect, host, request, input: Vec::new() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, word: impl Into<String>) -> Self {
        self.request.words.push(word.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<W: Into<String>>(mut self, words: impl IntoIterator<Item = W>) -> Self {
        self.request.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// Sets a variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.request.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn directory(mut self, path: &str) -> Self {
        self.request.directory = Some(path.to_owned());
        self
    }

    /// Sets the time limit; 60 s when not called.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.request.timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Sets what [`Call::finish`] gives it on standard input.
    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    /// Starts it and hands over its streams.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn start(self) -> Result<Session> {
        Session::open((self.connect)(), self.host, &self.request)
    }

    /// Runs it to its end, whatever its status.
    ///
    /// # Errors
    /// The host does not answer, or stops answering.
    pub fn finish(mut self) -> Result<Finished> {
        let input = std::mem::take(&mut self.input);
        let mut session = self.start()?;
        for chunk in input.chunks(CHUNK_BYTES) {
            session.write(chunk)?;
        }
        session.end_input()?;
        session.collect()
    }

    /// Runs it to its end and returns its standard output.
    ///
    /// # Errors
    /// As [`Call::finish`], and any ending but status 0; the message has the command and its standard error.
    pub fn ok(self) -> Result<String> {
        let what = format!("{}: {}", self.host, self.request.words.join(" "));
        let finished = self.finish()?;
        if !finished.success() {
            bail!("{what}: {:?}: {}{}", finished.ending, finished.error_text().trim_end(), finished.text().trim_end());
        }
        Ok(finished.text())
    }
}

/// A command under way.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    words: String,
}

impl Session {
    fn open(stream: Result<TcpStream>, host: &str, request: &Request) -> Result<Self> {
        let mut stream = stream.with_context(|| format!("{host} does not answer"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(request.timeout_ms).saturating_add(MARGIN)))?;
        Frame::Start(request.clone()).write(&mut stream)?;
        Ok(Self { stream, words: format!("{host}: {}", request.words.join(" ")) })
    }

    /// Sends bytes to its standard input.
    ///
    /// # Errors
    /// The connection broke.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(Frame::Stdin(bytes.to_vec()).write(&mut self.stream)?)
    }

    /// A second handle for its standard input, for a thread of its own.
    ///
    /// # Errors
    /// The socket cannot be duplicated.
    pub fn input(&self) -> Result<Input> {
        Ok(Input { stream: self.stream.try_clone()? })
    }

    /// Ends its standard input.
    ///
    /// # Errors
    /// The connection broke.
    pub fn end_input(&mut self) -> Result<()> {
        Ok(Frame::StdinEnd.write(&mut self.stream)?)
    }

    /// The next message: output, or the end.
    ///
    /// # Errors
    /// The connection broke or nothing came within the command's limit.
    pub fn receive(&mut self) -> Result<Frame> {
        let frame = Frame::read(&mut self.stream).with_context(|| format!("{}: waiting for its end", self.words))?;
        frame.ok_or_else(|| anyhow!("{}: the host closed the connection", self.words))
    }

    /// Waits for the end and returns everything.
    ///
    /// # Errors
    /// As [`Session::receive`].
    pub fn collect(mut self) -> Result<Finished> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.receive()? {
                Frame::Stdout(bytes) => stdout.extend(bytes),
                Frame::Stderr(bytes) => stderr.extend(bytes),
                Frame::Exit(ending) => return Ok(Finished { ending, stdout, stderr }),
                Frame::Start(_) | Frame::Stdin(_) | Frame::StdinEnd => bail!("{}: nonsense from the host", self.words),
            }
        }
    }

    /// Splits it into a reader of its standard output and a writer to its standard input, as a byte stream such as a
    /// guest's console. Standard error is kept for the error of a command that fails. Closing the writer's side ends the command.
    ///
    /// # Errors
    /// The socket cannot be duplicated.
    pub fn into_stream(self) -> Result<(OutputStream, InputStream)> {
        self.stream.set_read_timeout(None)?;
        let writer = InputStream { stream: self.stream.try_clone()? };
        Ok((OutputStream { stream: self.stream, rest: Vec::new(), words: Vec::new() }, writer))
    }
}

/// The standard input of a command beside its [`Session`].
#[derive(Debug)]
pub struct Input {
    stream: TcpStream,
}

impl Input {
    /// Sends bytes.
    ///
    /// # Errors
    /// The connection broke.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        bytes.chunks(CHUNK_BYTES).try_for_each(|chunk| Frame::Stdin(chunk.to_vec()).write(&mut self.stream))?;
        Ok(())
    }

    /// Says that no more comes.
    ///
    /// # Errors
    /// The connection broke.
    pub fn end(&mut self) -> Result<()> {
        Ok(Frame::StdinEnd.write(&mut self.stream)?)
    }
}

/// The standard output of a command as a byte stream. A command that fails ends it with an error that has its last words.
#[derive(Debug)]
pub struct OutputStream {
    stream: TcpStream,
    rest: Vec<u8>,
    /// What it wrote to standard error, at most [`WORDS_BYTES_MAX`].
    words: Vec<u8>,
}

impl Read for OutputStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match Frame::read(&mut self.stream)? {
                Some(Frame::Stdout(bytes)) => self.rest = bytes,
                Some(Frame::Stderr(bytes)) => {
                    let room = WORDS_BYTES_MAX.saturating_sub(self.words.len()).min(bytes.len());
                    self.words.extend_from_slice(&bytes[..room]);
                }
                Some(Frame::Exit(Ending::Code(0))) => return Ok(0),
                Some(Frame::Exit(ending)) => {
                    let words = String::from_utf8_lossy(&self.words);
                    return Err(io::Error::other(format!("the command ended with {ending:?}: {}", words.trim_end())));
                }
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the host closed the connection")),
                Some(_) => {}
            }
        }
        let count = self.rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.rest[..count]);
        self.rest.drain(..count);
        Ok(count)
    }
}

/// The standard input of a command as a byte stream; dropping it breaks the connection, which ends the command.
#[derive(Debug)]
pub struct InputStream {
    stream: TcpStream,
}

impl Write for InputStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK_BYTES);
        Frame::Stdin(bytes[..count].to_vec()).write(&mut self.stream)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Console for InputStream {
    fn hang_up(&mut self) {
        // It may have ended already.
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

impl Drop for InputStream {
    fn drop(&mut self) {
        self.hang_up();
    }
}

#[cfg(test)]
mod tests {
    //! Shows the protocol end to end against a server in this process: status, streams, input, limit, life line.
    use super::*;
    use std::net::TcpListener;
    use std::time::Instant;

    fn call(program: &str) -> Call<'static, impl FnOnce() -> Result<TcpStream>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || super::super::server::serve_on(&listener));
        Call::new("here", move || Ok(TcpStream::connect(address)?), program)
    }

    #[test]
    fn status_and_streams_come_back_apart() {
        let finished = call("sh").args(["-c", "echo out; echo err >&2; exit 3"]).finish().unwrap();
        assert_eq!(finished.ending, Ending::Code(3));
        assert_eq!((finished.text(), finished.error_text()), ("out\n".into(), "err\n".into()));
    }

    #[test]
    fn input_environment_and_directory_arrive() {
        let input = vec![b'x'; 200_000];
        let finished = call("sh").args(["-c", "pwd; echo $A; wc -c"]).env("A", "b").directory("/tmp").input(input);
        assert_eq!(finished.ok().unwrap(), "/tmp\nb\n200000\n");
    }

    #[test]
    fn a_limit_kills_the_whole_group() {
        let start = Instant::now();
        let finished = call("sh").args(["-c", "sleep 50 & sleep 50"]).limit(Duration::from_millis(300)).finish();
        assert_eq!(finished.unwrap().ending, Ending::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_background_process_does_not_hold_the_answer() {
        let start = Instant::now();
        let text = call("sh").args(["-c", "sleep 20 & echo $!"]).ok().unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
        let pid = nix::unistd::Pid::from_raw(text.trim().parse().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("the background process still runs");
    }

    #[test]
    fn a_missing_program_is_said() {
        assert!(matches!(call("/no/such/program").finish().unwrap().ending, Ending::NotStarted(_)));
        assert_eq!(call("sh").args(["-c", "kill -9 $$"]).finish().unwrap().ending, Ending::Signal(9));
    }

    #[test]
    fn a_broken_connection_ends_the_command() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("pid");
        let script = format!("echo $$ >{}; exec sleep 50", file.display());
        let session = call("sh").args(["-c", script.as_str()]).start().unwrap();
        let wait = |what: &str, look: &dyn Fn() -> bool| {
            basalt_tests::process::wait_for(what, Duration::from_secs(10), || Ok(look().then_some(()))).unwrap();
        };
        wait("its pid", &|| std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')));
        let pid = std::fs::read_to_string(&file).unwrap();
        drop(session);
        wait("its end", &|| !std::path::Path::new("/proc").join(pid.trim()).exists());
    }

    #[test]
    fn a_session_is_a_byte_stream() {
        let (mut reader, mut writer) = call("cat").start().unwrap().into_stream().unwrap();
        writer.write_all(b"hello").unwrap();
        let mut buffer = [0; 5];
        reader.read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"hello");
    }

    #[test]
    fn a_stream_says_how_its_command_failed() {
        let (mut reader, _writer) =
            call("sh").args(["-c", "echo out; echo why >&2; exit 3"]).start().unwrap().into_stream().unwrap();
        let mut text = Vec::new();
        let error = reader.read_to_end(&mut text).unwrap_err();
        assert_eq!(text, b"out\n");
        assert!(error.to_string().contains("Code(3): why"), "{error}");
    }
}
