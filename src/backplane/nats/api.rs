//! What a log asks JetStream.
//!
//! The answers are read here, rather than by the client's types: those change with features that
//! other crates of a build may turn on.

use std::time::Duration;

use async_nats::{Client, Request, RequestErrorKind};
use serde_json::{Value, json};

use super::settings::JetStreamSettings;
use crate::{BoxError, log::Epoch};

/// How long the server may take to answer a question.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

/// The server's codes.
const STREAM_NOT_FOUND: u64 = 10059;
const STREAM_NAME_EXISTS: u64 = 10058;

/// The stream, as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamState {
    pub(super) epoch: Epoch,
    /// The oldest message that is there; where there is none, what follows the last.
    pub(super) first: u64,
    /// The latest message that there was.
    pub(super) last: u64,
    pub(super) messages: u64,
    /// Whether messages go with time, and not only to make room.
    pub(super) expires: bool,
    /// For how long the server knows a message again.
    pub(super) knows_for: Duration,
}

/// The stream, or none of that name; or no answer.
pub(super) async fn stream_state(
    client: &Client,
    settings: &JetStreamSettings,
) -> Result<Option<StreamState>, BoxError> {
    let answer = ask(client, "INFO", &settings.stream, &Value::Null).await?;
    match answer["error"]["err_code"].as_u64() {
        None => state(&answer)
            .map(Some)
            .ok_or_else(|| "the server's word on the stream is not understood".into()),
        Some(STREAM_NOT_FOUND) => Ok(None),
        Some(_) => Err(refusal(&answer)),
    }
}

/// Makes the stream, unless another node has just done so.
pub(super) async fn create(client: &Client, settings: &JetStreamSettings) -> Result<(), BoxError> {
    let storage = if settings.is_in_memory {
        "memory"
    } else {
        "file"
    };
    // No server forgets a message while an append may still be repeated.
    let knows_for = settings.append_timeout.max(Duration::from_millis(500)) * 2;
    let config = json!({
        "name": settings.stream,
        // The epoch lives with the log: it is in every copy of it, and in no later log.
        "description": format!("{DESCRIPTION}{:016x}", fastrand::u64(..)),
        "subjects": [settings.subject()],
        "retention": "limits",
        "discard": "old",
        "storage": storage,
        "num_replicas": settings.replicas,
        "max_msgs": settings.window,
        "max_bytes": settings.max_bytes,
        "max_msgs_per_subject": -1,
        "max_msg_size": -1,
        "max_consumers": -1,
        "max_age": 0,
        "duplicate_window": u64::try_from(knows_for.as_nanos()).unwrap_or(u64::MAX >> 1),
    });
    let answer = ask(client, "CREATE", &settings.stream, &config).await?;
    match answer["error"]["err_code"].as_u64() {
        None | Some(STREAM_NAME_EXISTS) => Ok(()),
        Some(_) => Err(refusal(&answer)),
    }
}

async fn ask(client: &Client, what: &str, stream: &str, body: &Value) -> Result<Value, BoxError> {
    let payload = match body {
        Value::Null => Vec::new(),
        body => serde_json::to_vec(body)?,
    };
    let request = Request::new().payload(payload.into()).timeout(Some(ANSWER));
    let subject = format!("$JS.API.STREAM.{what}.{stream}");
    let answer = client.send_request(subject, request).await;
    let answer = answer.map_err(|error| match error.kind() {
        RequestErrorKind::NoResponders => "the server has no JetStream, or not now".into(),
        _ => BoxError::from(error),
    })?;
    Ok(serde_json::from_slice(&answer.payload)?)
}

fn refusal(answer: &Value) -> BoxError {
    let said = answer["error"]["description"].as_str();
    format!("the server refuses: {}", said.unwrap_or("no reason given")).into()
}

const DESCRIPTION: &str = "events of tower-sse, log ";

fn state(answer: &Value) -> Option<StreamState> {
    let (config, state) = (&answer["config"], &answer["state"]);
    let description = config["description"].as_str().unwrap_or_default();
    let nanoseconds = |of: &Value| Duration::from_nanos(of.as_u64().unwrap_or(0));
    Some(StreamState {
        epoch: epoch(description, answer["created"].as_str()?),
        first: state["first_seq"].as_u64()?,
        last: state["last_seq"].as_u64()?,
        messages: state["messages"].as_u64()?,
        expires: config["max_age"].as_u64().is_some_and(|age| age > 0),
        knows_for: nanoseconds(&config["duplicate_window"]),
    })
}

/// A stream that is made anew from its own configuration still has another time of making; and one
/// that somebody else has made has at least that.
fn epoch(description: &str, created: &str) -> Epoch {
    let bytes = description.bytes().chain([0]).chain(created.bytes());
    Epoch::new(hash(bytes))
}

/// FNV-1a, with the bits well mixed.
pub(super) fn hash(bytes: impl IntoIterator<Item = u8>) -> u64 {
    let hash = bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash: u64 = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recreated_stream_gets_another_epoch() {
        let old = epoch("the same", "2026-11-22T10:00:00.000000001Z");
        assert_eq!(old, epoch("the same", "2026-11-22T10:00:00.000000001Z"));
        assert_ne!(old, epoch("the same", "2026-11-22T10:00:00.000000002Z"));
        assert_ne!(old, epoch("another", "2026-11-22T10:00:00.000000001Z"));
    }

    #[test]
    fn invalid_stream_state_is_rejected() {
        for text in ["null", "[]", "{}", r#"{"state":{"first_seq":-1}}"#] {
            assert_eq!(state(&serde_json::from_str(text).unwrap()), None, "{text}");
        }
    }
}
