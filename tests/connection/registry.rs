//! `Connections`: the connections that are open, and the values kept with each.

use super::{paths, rules};
use rules::{Notes, call_sse, forever, open, plain};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};
use support::Held;
use tower_sse::{CloseReason, Connections, Event, SseConnection, SseLayer};
use uuid::Uuid;

#[derive(Debug, PartialEq, Eq)]
struct UserId(u64);

fn layer(connections: &Connections) -> SseLayer {
    paths::without_welcome(SseLayer::new("/events")).registry(connections)
}

#[test]
fn connection_is_registered_from_request_to_end() {
    let connections = Connections::new();
    assert_eq!(connections.held(), 0);
    let (sse, mut stream) = open(&layer(&connections));
    assert_eq!(connections.len(), 1);
    let found = connections.get(&sse.uuid()).unwrap();
    assert_eq!(found, sse);
    found.try_send(Event::message("found")).unwrap();
    assert_eq!(stream.text(), "data: found\n\n");
    assert!(connections.get(&Uuid::new_v4()).is_none());
    assert!(connections.get(&Uuid::nil()).is_none());

    drop(stream);
    assert!(connections.get(&sse.uuid()).is_none());
    assert_eq!(connections.held(), 0);
}

#[test]
fn a_handle_that_was_found_keeps_the_stream_open() {
    let connections = Connections::new();
    let (sse, mut stream) = open(&layer(&connections));
    let found = connections.get(&sse.uuid()).unwrap();
    drop(sse);
    stream.assert_waits();
    drop(found);
    stream.rest().1.assert_ended();
}

#[test]
fn iter_yields_each_started_connection() {
    let connections = Connections::new();
    let layer = layer(&connections);
    let mut waiting = call_sse(&layer, async |_| {
        forever().await;
        plain()
    });
    assert!(waiting.poll().is_pending());
    let open: Vec<_> = (0..10).map(|_| open(&layer)).collect();
    assert_eq!(connections.held(), 11);

    let expected: HashSet<_> = open.iter().map(|(sse, _)| sse.uuid()).collect();
    let found: HashSet<_> = connections.iter().map(|sse| sse.uuid()).collect();
    assert_eq!(found, expected);
}

#[test]
fn len_counts_the_connections_that_iter_yields() {
    let connections = Connections::new();
    let layer = layer(&connections);
    let assert_len = |len| {
        assert_eq!((connections.len(), connections.iter().count()), (len, len));
        assert_eq!(connections.is_empty(), len == 0);
        assert_eq!(connections.stats().open, len as u64);
    };
    assert_len(0);
    let mut waiting = call_sse(&layer, async |_| {
        forever().await;
        plain()
    });
    assert!(waiting.poll().is_pending());
    assert_len(0); // its stream has not started
    assert_eq!(connections.stats().pending, 1);
    drop(call_sse(&layer, async |_| rules::status(404)).response());
    assert_len(0); // there is no stream

    let (first, mut one) = open(&layer);
    assert_len(1);
    let (_second, two) = open(&layer);
    assert_len(2);
    assert_eq!(connections.stats().pending, 1);
    drop(waiting);
    assert_len(2);
    assert_eq!(connections.stats().pending, 0);
    first.try_send(Event::message("queued")).unwrap();
    first.close();
    assert_len(2); // it is still sending
    one.rest().1.assert_ended();
    assert_len(1);
    drop(two);
    assert_len(0);
}

#[test]
fn on_open_and_on_close_see_the_number_of_streams() {
    let connections = Connections::new();
    let (opened, closed) = (connections.clone(), connections.clone());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (at_open, at_close) = (Arc::clone(&seen), Arc::clone(&seen));
    let layer = layer(&connections)
        .on_open(move |_| at_open.lock().unwrap().push(opened.len()))
        .on_close(move |_, _| at_close.lock().unwrap().push(closed.len()));
    let (_sse, stream) = open(&layer);
    drop(stream);
    assert_eq!(*seen.lock().unwrap(), [1, 0]);
}

#[test]
fn iter_is_a_snapshot_of_the_connections() {
    let connections = Connections::new();
    let layer = layer(&connections);
    let (first, stream) = open(&layer);
    let iter = connections.iter();
    let (_second, _other) = open(&layer);
    drop(stream);
    let found: Vec<_> = iter.collect();
    assert!(found.len() <= 1);
    assert!(found.iter().all(|sse| *sse == first && sse.is_closed()));
}

#[test]
fn close_where_closes_and_counts_matching_connections() {
    let connections = Connections::new();
    let layer = layer(&connections);
    let mut open: Vec<_> = (0..10).map(|_| open(&layer)).collect();
    for (number, (sse, _)) in open.iter().enumerate() {
        sse.insert(UserId(number as u64 % 3)).unwrap();
        sse.try_send(Event::message("queued")).unwrap();
    }
    let is_meant = |sse: &SseConnection| sse.get::<UserId>() == Some(&UserId(1));
    assert_eq!(connections.close_where(is_meant), 3);
    assert_eq!(connections.close_where(is_meant), 0, "they are closed");
    for (number, (sse, stream)) in open.iter_mut().enumerate() {
        let (text, rest) = stream.rest();
        assert_eq!(text, "data: queued\n\n");
        assert_eq!(matches!(rest, rules::Rest::Ended), number % 3 == 1);
        assert_eq!(sse.is_closed(), number % 3 == 1);
    }
    assert_eq!(connections.len(), 7);
    assert_eq!(connections.close_where(|_| true), 7);
}

#[test]
fn predicate_does_not_keep_its_connection_open() {
    let connections = Connections::new();
    let (sse, mut stream) = open(&layer(&connections));
    let mut sse = Some(sse);
    connections.close_where(|_| {
        sse.take();
        false
    });
    stream.rest().1.assert_ended();
}

#[test]
fn a_predicate_may_use_the_registry_and_the_connections() {
    let connections = Connections::new();
    let layer = layer(&connections);
    let (_one, mut stream) = open(&layer);
    let (_two, _other) = open(&layer);
    let closed = connections.close_where(|sse| {
        assert_eq!(connections.get(&sse.uuid()).as_ref(), Some(sse));
        assert_eq!(connections.iter().count(), 2);
        let _ = sse.try_send(Event::message("bye"));
        true
    });
    assert_eq!(closed, 2);
    let (text, rest) = stream.rest();
    assert_eq!(text, "data: bye\n\n");
    rest.assert_ended();
}

#[test]
fn one_registry_serves_several_layers() {
    let connections = Connections::new();
    let clone = connections.clone();
    let (_one, _stream) = open(&layer(&connections));
    let (_two, _other) = open(&layer(&clone));
    assert_eq!((connections.len(), clone.len()), (2, 2));
}

#[test]
fn layer_shares_its_registry_with_its_clones() {
    let layer = SseLayer::new("/events");
    let clone = layer.clone();
    let (_one, _stream) = open(&layer);
    let (_two, _other) = open(&clone);
    assert_eq!(layer.registered().len(), 2);
    assert_eq!(clone.registered().len(), 2);
    assert!(SseLayer::new("/events").registered().held() == 0);
}

#[test]
fn connections_can_be_removed_in_any_order() {
    let connections = Connections::new();
    let layer = layer(&connections);
    let mut open: Vec<_> = (0..2_000).map(|_| open(&layer)).collect();
    let uuids: HashSet<_> = open.iter().map(|(sse, _)| sse.uuid()).collect();
    assert_eq!(uuids.len(), 2_000);
    let mut at = 0;
    while !open.is_empty() {
        at = (at + 997) % open.len();
        let (sse, stream) = open.swap_remove(at);
        assert_eq!(connections.get(&sse.uuid()).as_ref(), Some(&sse));
        drop(stream);
        assert!(connections.get(&sse.uuid()).is_none());
        assert_eq!(connections.len(), open.len());
    }
}

// ===== values =====

#[test]
fn a_connection_keeps_one_value_of_each_type() {
    let (sse, _stream) = open(&SseLayer::new("/events"));
    assert_eq!(sse.get::<UserId>(), None);
    sse.insert(UserId(7)).unwrap();
    sse.insert("a text").unwrap();
    sse.insert(String::from("a string")).unwrap();
    let lent = sse.get::<UserId>().unwrap();
    assert_eq!(sse.insert(UserId(8)), Err(UserId(8)), "it is handed back");
    assert_eq!(lent, &UserId(7));
    assert_eq!(sse.clone().get::<&str>(), Some(&"a text"));
    assert_eq!(sse.get::<String>().unwrap(), "a string");
    assert_eq!(sse.get::<u8>(), None);
}

#[test]
fn hooks_find_the_values_at_the_end() {
    let notes = Notes::default();
    let noted = notes.clone();
    let layer = SseLayer::new("/events").on_close(move |sse, reason| {
        let user = sse.get::<UserId>();
        noted.add(format!("{user:?} {reason}"));
    });
    let (sse, stream) = open(&layer);
    sse.insert(UserId(7)).unwrap();
    drop(stream);
    let expected = format!("Some(UserId(7)) {}", CloseReason::ClientGone);
    assert_eq!(notes.take(), [expected]);
}

#[test]
fn values_are_dropped_with_the_last_handle() {
    let (sse, stream) = open(&SseLayer::new("/events"));
    let value = Arc::new(());
    sse.insert(Arc::clone(&value)).unwrap();
    drop(stream);
    assert_eq!(Arc::strong_count(&value), 2);
    drop(sse);
    assert_eq!(Arc::strong_count(&value), 1);
}
