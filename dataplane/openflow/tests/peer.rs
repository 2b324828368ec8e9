//! Shows that a peer that is no switch, or stops being one, ends the connection with an error that says so, soon and in bounded memory;
//! and that the connection's owner can connect again.
//!
//! How: a thread plays the peer on a unix socket, octet by octet.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use openflow::{
    connection::{Connection, Options, RequestError, Target},
    flow::{Meter, MeterUnit},
    session::Limits,
    wire::{self, Features, Hello, Message, MultipartReply},
};

/// Long enough for a loaded machine, short enough for a test that waits for silence.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// Between the parts of a slow answer.
const PART_PAUSE: Duration = Duration::from_millis(400);

fn options() -> Options {
    let limits = Limits { echo_interval: SILENCE_MAX / 4, dead_interval: SILENCE_MAX, ..Limits::default() };
    Options { limits, connect_timeout: SILENCE_MAX * 4, ..Options::default() }
}

/// Reads until a message of this type comes and gives its transaction id.
fn wait_for(stream: &mut UnixStream, kind: u8) -> Result<u32> {
    loop {
        let mut header = [0; wire::HEADER_OCTETS];
        stream.read_exact(&mut header)?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let mut body = vec![0; length - wire::HEADER_OCTETS];
        stream.read_exact(&mut body)?;
        if header[1] == kind {
            return Ok(u32::from_be_bytes([header[4], header[5], header[6], header[7]]));
        }
    }
}

/// Greets as a switch does, and says what it is.
fn greet(stream: &mut UnixStream) -> Result<()> {
    stream.write_all(&wire::encode(&Message::Hello(Hello::new()), 1)?)?;
    let xid = wait_for(stream, 5)?;
    let features = Features { datapath_id: 7, buffers: 0, tables: 254, auxiliary_id: 0, capabilities: 0 };
    Ok(stream.write_all(&wire::encode(&Message::FeaturesReply(features), xid)?)?)
}

/// Plays one peer; it holds the socket open until the other side goes.
fn play(
    path: &Path,
    peer: impl FnOnce(&mut UnixStream) -> Result<()> + Send + 'static,
) -> Result<thread::JoinHandle<()>> {
    let listener = UnixListener::bind(path)?;
    Ok(thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(SILENCE_MAX * 8)).expect("a timeout");
        // The other side may close while the peer still talks: that is what is tested.
        let _ = peer(&mut stream);
        let mut sink = [0; 4096];
        while stream.read(&mut sink).is_ok_and(|count| count > 0) {}
    }))
}

/// Everything that an error says, with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        said += &format!(": {cause}");
        next = cause.source();
    }
    said
}

/// Waits for the end of a peer while the connection's task goes on.
async fn join(played: thread::JoinHandle<()>) -> Result<()> {
    let ended = tokio::task::spawn_blocking(move || played.join()).await?;
    ended.map_err(|_| anyhow::anyhow!("the peer panicked"))
}

type Peer = fn(&mut UnixStream) -> Result<()>;

/// Shows that a peer that is no switch is told so while connecting.
#[tokio::test]
async fn strangers_are_refused() -> Result<()> {
    let strangers: [(&str, Peer, &str); 5] = [
        ("web server", |s| Ok(s.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")?), "wire version 72"),
        ("zeros", |s| Ok(s.write_all(&[0; 64])?), "cannot have length 0"),
        ("no hello", |s| Ok(s.write_all(&wire::encode(&Message::BarrierReply, 1)?)?), "did not begin with hello"),
        ("half a hello", |s| Ok(s.write_all(&[6, 0, 0, 16, 0])?), "silent for"),
        ("mute", |_| Ok(()), "silent for"),
    ];
    let directory = tempfile::tempdir()?;
    for (name, peer, expected) in strangers {
        let path = directory.path().join(name);
        let played = play(&path, peer)?;
        let error = Connection::connect(&Target::Unix(path), options()).await.err().context(name)?;
        let said = chain(&error);
        ensure!(said.contains(expected), "{name}: {said:?} does not say {expected:?}");
        join(played).await?;
    }
    Ok(())
}

/// Shows that a switch that goes wrong in the middle ends the connection, that what waits for it is told, and that the next one works.
#[tokio::test]
async fn switches_that_go_wrong_are_named() -> Result<()> {
    let wrong: [(&str, Peer, &str); 4] = [
        ("garbage", |s| Ok(s.write_all(&[0xff; 300])?), "wire version 255"),
        ("half a message", |s| Ok(s.write_all(&[6, 19, 1, 0, 0, 0, 0, 9, 0, 1])?), "silent for"),
        ("silence", |_| Ok(()), "silent for"),
        ("end", |s| Ok(s.shutdown(std::net::Shutdown::Both)?), "closed the connection"),
    ];
    let directory = tempfile::tempdir()?;
    for (name, peer, expected) in wrong {
        let path = directory.path().join(name);
        let played = play(&path, move |stream| {
            greet(stream)?;
            wait_for(stream, 20)?;
            peer(stream)
        })?;
        let (connection, mut incoming) = Connection::connect(&Target::Unix(path.clone()), options()).await?;
        let error = connection.barrier().await.err().context(name)?;
        ensure!(error.to_string().contains("over"), "{name}: {error}");
        let why = connection.over().await.context(name)?;
        ensure!(chain(&*why).contains(expected), "{name}: {} does not say {expected:?}", chain(&*why));
        ensure!(incoming.next().await.is_none());
        drop((connection, incoming));
        join(played).await?;

        std::fs::remove_file(&path)?;
        let played = play(&path, |stream| {
            greet(stream)?;
            let xid = wait_for(stream, 20)?;
            Ok(stream.write_all(&wire::encode(&Message::BarrierReply, xid)?)?)
        })?;
        let (connection, incoming) = Connection::connect(&Target::Unix(path), options()).await?;
        connection.barrier().await.with_context(|| format!("after {name}"))?;
        drop((connection, incoming));
        join(played).await?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a peer that is slow is what is tested")]
/// Answers a question of many parts: so many of them, each after a pause.
fn answer(stream: &mut UnixStream, parts: std::ops::Range<u32>, of: u32) -> Result<()> {
    greet(stream)?;
    let xid = wait_for(stream, 18)?;
    for part in parts {
        thread::sleep(PART_PAUSE);
        let reply = MultipartReply::Meters(vec![Meter::drop_above(part + 1, MeterUnit::Packets, 1, 1)]);
        stream.write_all(&wire::encode(&Message::MultipartReply { reply, more: part + 1 < of }, xid)?)?;
    }
    Ok(())
}

/// Shows that an answer may be on its way for longer than the switch may be silent, and that one that stops is given up.
#[tokio::test]
async fn slow_answers_are_waited_for_and_silent_ones_given_up() -> Result<()> {
    let options = Options { request_timeout: PART_PAUSE * 3, ..Options::default() };
    let directory = tempfile::tempdir()?;
    let slow = directory.path().join("slow");
    let played = play(&slow, |stream| answer(stream, 0..6, 6))?;
    let (connection, incoming) = Connection::connect(&Target::Unix(slow), options).await?;
    assert_eq!(connection.dump_meters().await?.len(), 6, "all parts, the last long after the limit of silence");
    drop((connection, incoming));
    join(played).await?;

    let silent = directory.path().join("silent");
    let played = play(&silent, |stream| answer(stream, 0..2, 6))?;
    let (connection, incoming) = Connection::connect(&Target::Unix(silent), options).await?;
    let error = connection.dump_meters().await.err().context("an answer that stopped was taken")?;
    ensure!(matches!(error, RequestError::Timeout { .. }), "{error:?}");
    drop((connection, incoming));
    join(played).await
}
