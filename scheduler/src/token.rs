//! Join tokens: one host, one use, a limited time.
//!
//! A token that was made waits as a file named for the SHA-256 of its secret; the secret itself is in no file. Using it removes the file, and only
//! who removed it has used it, so two joins with one token never both succeed. `scheduler token` needs no running scheduler.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use model::agent::JoinToken;
use model::image::Sha256;
use serde::{Deserialize, Serialize};
use sha2::Digest;

use crate::authority;

/// The longest time that a token can wait.
const TTL_MAX: SignedDuration = SignedDuration::from_hours(24 * 30);

/// A token can not be made or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// The time to live is out of range.
    #[error("make a join token good for {0}: want more than nothing and at most 30 days")]
    Ttl(String),
    /// A file can not be written or read.
    #[error("{action} the join token {path:?}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The CA can not be read, or the file can not be made.
    #[error("make a join token")]
    Authority(#[from] authority::AuthorityError),
    /// It was never made, or used already.
    #[error("this join token is not known, or was used already")]
    Unknown,
    /// It waited for too long.
    #[error("this join token expired at {0}")]
    Expired(Timestamp),
    /// It is for another host.
    #[error("this join token is for another host")]
    OtherHost,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Waiting {
    host: String,
    expires: Timestamp,
}

fn spool(dir: &Path) -> PathBuf {
    dir.join("tokens")
}

fn path_of(dir: &Path, token: &JoinToken) -> PathBuf {
    let digest = Sha256::new(sha2::Sha256::digest(token.secret()).into());
    spool(dir).join(digest.to_string())
}

/// Makes a token for `host`.
pub(crate) fn mint(dir: &Path, host: &str, ttl: SignedDuration, now: Timestamp) -> Result<JoinToken, TokenError> {
    let ca = authority::ca_digest(dir)?;
    let expires = now.checked_add(ttl).ok().filter(|_| ttl.is_positive() && ttl <= TTL_MAX);
    let expires = expires.ok_or_else(|| TokenError::Ttl(format!("{ttl:#}")))?;
    let mut secret = [0; 32];
    // Two version 4 UUIDs: 244 bits from the system's generator.
    let (low, high) = secret.split_at_mut(16);
    low.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    high.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    let token = JoinToken::new(ca, secret);
    let spool = spool(dir);
    fs::create_dir_all(&spool).map_err(|source| TokenError::File { action: "keep", path: spool.clone(), source })?;
    let path = path_of(dir, &token);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let text = serde_json::to_string(&Waiting { host: host.to_owned(), expires })
        .map_err(|source| TokenError::File { action: "keep", path: path.clone(), source: source.into() })?;
    authority::write(&spool, &name, &text, 0o600)?;
    Ok(token)
}

/// Looks whether a token lets `host` join now, without using it.
pub(crate) fn check(dir: &Path, token: &JoinToken, host: &str, now: Timestamp) -> Result<(), TokenError> {
    let path = path_of(dir, token);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(TokenError::Unknown),
        Err(source) => return Err(TokenError::File { action: "read", path, source }),
    };
    let waiting: Waiting = serde_json::from_str(&text).map_err(|source| TokenError::File {
        action: "read",
        path: path.clone(),
        source: source.into(),
    })?;
    if waiting.expires <= now {
        return Err(TokenError::Expired(waiting.expires));
    }
    if waiting.host != host {
        return Err(TokenError::OtherHost);
    }
    Ok(())
}

/// Uses a token up.
pub(crate) fn spend(dir: &Path, token: &JoinToken) -> Result<(), TokenError> {
    let path = path_of(dir, token);
    match fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(TokenError::Unknown),
        Err(source) => Err(TokenError::File { action: "use", path, source }),
    }
}

/// Removes tokens that have expired.
pub(crate) fn sweep(dir: &Path, now: Timestamp) {
    for entry in fs::read_dir(spool(dir)).into_iter().flatten().flatten() {
        let waiting =
            fs::read_to_string(entry.path()).ok().and_then(|text| serde_json::from_str::<Waiting>(&text).ok());
        if waiting.is_some_and(|waiting| waiting.expires <= now) && fs::remove_file(entry.path()).is_ok() {
            tracing::info!("an expired join token was removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_one_host_one_use_and_a_limited_time() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        authority::Authority::found(&home, &["localhost".to_owned()]).unwrap();
        let now = Timestamp::now();
        let hour = SignedDuration::from_hours(1);
        let token = mint(&home, "h1", hour, now).unwrap();
        assert!(check(&home, &token, "h1", now).is_ok());
        assert!(matches!(check(&home, &token, "h2", now), Err(TokenError::OtherHost)));
        assert!(matches!(check(&home, &token, "h1", now + hour), Err(TokenError::Expired(_))));
        let other = JoinToken::new(token.ca(), [9; 32]);
        assert!(matches!(check(&home, &other, "h1", now), Err(TokenError::Unknown)));
        for entry in fs::read_dir(spool(&home)).unwrap() {
            let path = entry.unwrap().path();
            let secret = Sha256::new(token.secret()).to_string();
            assert!(!path.to_string_lossy().contains(&secret));
            assert!(!fs::read_to_string(path).unwrap().contains(&secret));
        }
        spend(&home, &token).unwrap();
        assert!(matches!(spend(&home, &token), Err(TokenError::Unknown)));
        assert!(matches!(check(&home, &token, "h1", now), Err(TokenError::Unknown)));
        for ttl in [SignedDuration::ZERO, -hour, TTL_MAX + hour] {
            assert!(matches!(mint(&home, "h1", ttl, now), Err(TokenError::Ttl(_))));
        }
        mint(&home, "h3", hour, now - hour - hour).unwrap();
        sweep(&home, now);
        assert_eq!(fs::read_dir(spool(&home)).unwrap().count(), 0);
    }
}
