//! The bounded queue of one connection: its bounds, its order, its frames.

use super::{paths, rules};
use rules::{Stream, call_sse, forever, open, open_untouched, plain};
use std::task::Poll;
use tokio_test::{assert_pending, assert_ready, task};
use tower_sse::{
    Event, SseConnection, SseLayer,
    connection::TrySendError,
    layer::{OutboxLimits, Welcome},
};

fn layer() -> SseLayer {
    paths::without_welcome(SseLayer::new("/events"))
}

/// An event that takes this many bytes on the wire.
fn sized(bytes: usize) -> Event {
    let around = "data: \n\n".len();
    Event::message("x".repeat(bytes - around))
}

fn small(text: &str) -> Event {
    Event::message(text)
}

/// How many events are taken before there is no room.
fn fill(sse: &SseConnection, event: &Event) -> usize {
    let mut count = 0;
    while sse.try_send(event.clone()).is_ok() {
        count += 1;
    }
    count
}

// ===== bounds =====

#[test]
fn outbox_holds_64_events_and_returns_the_next() {
    let (sse, _stream) = open(&layer());
    assert_eq!(fill(&sse, &small("a")), 64);
    let error = sse.try_send(small("one too many")).unwrap_err();
    assert!(matches!(error, TrySendError::Full(_)));
    assert_eq!(error.to_string(), "outbox is full");
    assert_eq!(error.into_event().into_bytes(), "data: one too many\n\n");
}

#[test]
fn outbox_holds_a_mebibyte() {
    let (sse, mut stream) = open(&layer());
    assert_eq!(fill(&sse, &sized(1 << 18)), 4);
    assert!(sse.try_send(small("no room")).is_err());
    stream.frame();
    assert!(sse.try_send(sized((1 << 18) + 1)).is_err());
    assert!(sse.try_send(sized(1 << 18)).is_ok());
}

#[test]
fn outbox_limits_can_be_set() {
    let (sse, _stream) = open(&layer().outbox(OutboxLimits::new().events(3).bytes(1024)));
    assert_eq!(fill(&sse, &small("a")), 3);

    let (sse, _stream) = open(&layer().outbox(OutboxLimits::new().events(1000).bytes(100)));
    assert_eq!(fill(&sse, &sized(25)), 4);
}

#[test]
fn empty_outbox_accepts_an_event_of_any_size() {
    let (sse, mut stream) = open(&layer());
    let large = sized(16 << 20);
    assert_eq!(fill(&sse, &large), 1);
    assert!(sse.try_send(small("a")).is_err());
    assert_eq!(stream.frame().len(), 16 << 20);
    assert_eq!(fill(&sse, &large), 1);

    let (sse, mut stream) = open(&layer().outbox(OutboxLimits::new().bytes(0)));
    for _ in 0..3 {
        assert_eq!(fill(&sse, &small("a")), 1);
        stream.frame();
    }
}

#[test]
fn million_sends_without_a_poll_queue_64_events() {
    let (sse, mut stream) = open(&layer());
    let taken = (0..1_000_000)
        .filter(|_| sse.try_send(small("a")).is_ok())
        .count();
    assert_eq!(taken, 64);
    assert_eq!(stream.rest().0, "data: a\n\n".repeat(64));
}

#[test]
fn outbox_limits_apply_before_the_start() {
    let mut stream = call_sse(&layer(), async |sse| {
        assert_eq!(fill(&sse, &small("a")), 64);
        plain()
    })
    .stream();
    assert_eq!(stream.rest().0, "data: a\n\n".repeat(64));
}

// ===== order =====

#[test]
fn waiting_senders_are_served_in_order() {
    let (sse, mut stream) = open(&layer().outbox(OutboxLimits::new().events(1).bytes(1024)));
    sse.try_send(small("0")).unwrap();
    let mut senders: Vec<_> = ["1", "2", "3"]
        .map(|text| task::spawn(sse.send(small(text))))
        .into();
    for sender in &mut senders {
        assert_pending!(sender.poll());
    }
    for (at, text) in ["0", "1", "2", "3"].iter().enumerate() {
        assert_eq!(stream.text(), format!("data: {text}\n\n"));
        // The first is woken, the others are not, and are not served if they are polled.
        for later in senders.iter_mut().skip(1) {
            assert!(!later.is_woken());
            assert_pending!(later.poll());
        }
        if at < 3 {
            let mut first = senders.remove(0);
            assert!(first.is_woken());
            assert_ready!(first.poll()).unwrap();
        }
    }
    stream.assert_waits();
}

#[test]
fn senders_that_fit_are_woken_one_after_another() {
    let (sse, mut stream) = open(&layer().outbox(OutboxLimits::new().events(2).bytes(1024)));
    assert_eq!(fill(&sse, &small("0")), 2);
    let mut one = task::spawn(sse.send(small("1")));
    let mut two = task::spawn(sse.send(small("2")));
    let mut three = task::spawn(sse.send(small("3")));
    assert_pending!(one.poll());
    assert_pending!(two.poll());
    assert_pending!(three.poll());

    stream.frame();
    assert!(one.is_woken() && !two.is_woken());
    assert_ready!(one.poll()).unwrap();
    assert!(two.is_woken() && !three.is_woken());
    assert_ready!(two.poll()).unwrap();
    assert!(!three.is_woken(), "there is no room");
    assert_eq!(stream.text(), "data: 1\n\ndata: 2\n\n");
    assert!(three.is_woken());
}

#[test]
fn try_send_does_not_overtake_a_waiting_sender() {
    let (sse, mut stream) = open(&layer().outbox(OutboxLimits::new().events(1).bytes(1024)));
    sse.try_send(small("0")).unwrap();
    let mut waits = task::spawn(sse.send(small("1")));
    assert_pending!(waits.poll());
    stream.frame();
    assert!(matches!(
        sse.try_send(small("2")),
        Err(TrySendError::Full(_))
    ));
    let mut later = task::spawn(sse.send(small("3")));
    assert_pending!(later.poll());

    assert_ready!(waits.poll()).unwrap();
    assert_eq!(stream.text(), "data: 1\n\n");
    assert_ready!(later.poll()).unwrap();
    assert!(sse.try_send(small("4")).is_err());
    assert_eq!(stream.text(), "data: 3\n\n");
    assert!(sse.try_send(small("5")).is_ok());
}

#[test]
fn waiting_large_event_is_not_starved_by_small_ones() {
    let (sse, mut stream) = open(&layer().outbox(OutboxLimits::new().events(64).bytes(1000)));
    assert_eq!(fill(&sse, &sized(500)), 2);
    let mut large = task::spawn(sse.send(sized(900)));
    let mut tiny = task::spawn(sse.send(small("tiny")));
    assert_pending!(large.poll());
    assert_pending!(tiny.poll());
    stream.frame();
    assert_pending!(tiny.poll());
    assert_ready!(large.poll()).unwrap();
    assert_ready!(tiny.poll()).unwrap();
}

#[test]
fn dropped_waiting_send_has_no_effect() {
    let (sse, mut stream) = open(&layer().outbox(OutboxLimits::new().events(1).bytes(1024)));
    sse.try_send(small("0")).unwrap();
    let mut dropped = task::spawn(sse.send(small("dropped")));
    assert_pending!(dropped.poll());
    drop(dropped);
    assert_eq!(stream.text(), "data: 0\n\n");
    stream.assert_waits();
    assert!(sse.try_send(small("1")).is_ok());
    assert_eq!(stream.text(), "data: 1\n\n");
}

#[test]
fn dropped_woken_send_wakes_the_next_sender() {
    let (sse, mut stream) = open(&layer().outbox(OutboxLimits::new().events(1).bytes(1024)));
    sse.try_send(small("0")).unwrap();
    let mut first = task::spawn(sse.send(small("1")));
    let mut middle = task::spawn(sse.send(small("2")));
    let mut last = task::spawn(sse.send(small("3")));
    assert_pending!(first.poll());
    assert_pending!(middle.poll());
    assert_pending!(last.poll());
    stream.frame();
    assert!(first.is_woken() && !middle.is_woken());
    drop(first);
    assert!(middle.is_woken() && !last.is_woken());
    drop(middle);
    assert!(last.is_woken());
    assert_ready!(last.poll()).unwrap();
    assert_eq!(stream.text(), "data: 3\n\n");
}

#[test]
fn a_send_that_was_never_polled_sends_nothing() {
    let (sse, mut stream) = open(&layer());
    drop(sse.send(small("never")));
    stream.assert_waits();
}

#[test]
fn waiting_senders_fail_at_every_kind_of_end() {
    type End = fn(SseConnection, Stream);
    let ends: [(End, &str); 4] = [
        (
            |sse, stream| (sse.close(), std::mem::forget(stream)).1,
            "closed",
        ),
        (
            |sse, stream| {
                (
                    sse.close_with(small("bye")).unwrap(),
                    std::mem::forget(stream),
                )
                    .1
            },
            "closed",
        ),
        (
            |sse, stream| (sse.fail("broken"), std::mem::forget(stream)).1,
            "failed",
        ),
        (|_, stream| drop(stream), "client_gone"),
    ];
    for (end, reason) in ends {
        let (sse, stream) = open(&layer().outbox(OutboxLimits::new().events(1).bytes(1)));
        sse.try_send(small("0")).unwrap();
        let mut senders = ["1", "2"].map(|text| task::spawn(sse.send(small(text))));
        for sender in &mut senders {
            assert_pending!(sender.poll());
        }
        end(sse.clone(), stream);
        for (sender, expected) in senders.iter_mut().zip(["data: 1\n\n", "data: 2\n\n"]) {
            assert!(sender.is_woken());
            let error = assert_ready!(sender.poll()).unwrap_err();
            assert_eq!(
                error
                    .reason()
                    .map_or("none", tower_sse::CloseReason::as_str),
                reason
            );
            assert_eq!(error.into_event().into_bytes(), expected);
        }
    }
}

// ===== frames =====

#[test]
fn single_event_is_sent_as_its_own_frame() {
    let (sse, mut stream) = open(&layer());
    sse.try_send(sized(100_000)).unwrap();
    assert_eq!(stream.frame().len(), 100_000);
    stream.assert_waits();
    sse.try_send(small("a")).unwrap();
    assert_eq!(stream.frame(), "data: a\n\n");
}

#[test]
fn ready_events_are_merged_into_one_frame() {
    let (sse, mut stream) = open(&layer());
    let mut expected = String::new();
    for number in 0..64 {
        let text = number.to_string();
        sse.try_send(small(&text)).unwrap();
        expected += &format!("data: {text}\n\n");
    }
    assert_eq!(stream.text(), expected);
    stream.assert_waits();
}

#[test]
fn merged_frames_hold_at_most_32_kib_of_whole_events() {
    const MERGED: usize = 32 * 1024;
    let frames = |sizes: &[usize]| {
        let (sse, mut stream) =
            open(&layer().outbox(OutboxLimits::new().events(1000).bytes(usize::MAX)));
        for size in sizes {
            sse.try_send(sized(*size)).unwrap();
        }
        sse.close();
        let mut frames = Vec::new();
        while let Poll::Ready(Some(frame)) = stream.poll() {
            let frame = frame.unwrap().into_data().unwrap();
            assert!(frame.starts_with(b"data: ") && frame.ends_with(b"\n\n"));
            frames.push(frame.len());
        }
        frames
    };
    assert_eq!(frames(&[MERGED - 100, 100]), [MERGED]);
    assert_eq!(frames(&[MERGED - 100, 101]), [MERGED - 100, 101]);
    assert_eq!(frames(&[1000; 40]), [32_000, 8_000]);
    // Larger ones go alone.
    assert_eq!(frames(&[MERGED + 1, 10]), [MERGED + 1, 10]);
    assert_eq!(frames(&[10, MERGED, 10]), [10, MERGED, 10]);
    assert_eq!(frames(&[10, 10, 200_000, 10, 10]), [20, 200_000, 20]);
}

#[test]
fn welcome_is_merged_with_events_already_queued() {
    let layer = SseLayer::new("/events").welcome(Welcome::new(|_| small("welcome")));
    let (sse, mut stream) = open_untouched(&layer);
    sse.try_send(small("a")).unwrap();
    assert_eq!(stream.text(), "data: welcome\nretry: 3000\n\ndata: a\n\n");
    assert_eq!(
        fill(&sse, &small("b")),
        64,
        "the bounds are the outbox's still"
    );
}

#[test]
fn comment_is_sent_as_comment_lines_only() {
    let (sse, mut stream) = open(&layer());
    sse.try_send(Event::comment("one\ntwo")).unwrap();
    sse.try_send(small("a")).unwrap();
    assert_eq!(stream.text(), ": one\n: two\ndata: a\n\n");
}

// ===== backpressure =====

#[test]
fn sending_loop_is_paced_by_polls_of_the_body() {
    let notes = rules::Notes::default();
    let (noted, dropped) = (notes.clone(), notes.on_drop("dropped"));
    let mut stream = call_sse(&layer(), async move |sse| {
        let _dropped = dropped;
        for number in 0.. {
            let sent = sse.send(small(&number.to_string())).await;
            sent.map_err(|_| rules::Failure)?;
            noted.add(number.to_string());
        }
        plain()
    })
    .stream();
    assert_eq!(
        notes.take().len(),
        64,
        "the outbox is full, and nobody polls"
    );

    let mut expected = 0;
    for _ in 0..10 {
        for line in stream.text().split_terminator("\n\n") {
            assert_eq!(line, format!("data: {expected}"));
            expected += 1;
        }
        assert!(notes.take().len() <= 64);
    }
    assert!(expected > 500, "it went on: {expected}");
    drop(stream);
    assert_eq!(notes.take(), ["dropped"]);
}

#[test]
fn sender_in_another_task_is_paced_by_the_body() {
    let (sse, mut stream) = open(&layer().outbox(OutboxLimits::new().events(1).bytes(1)));
    let mut sender = task::spawn(async {
        for text in ["a", "b"] {
            sse.send(small(text)).await.unwrap();
        }
        forever().await;
    });
    assert_pending!(sender.poll());
    assert!(!sender.is_woken());
    assert_eq!(stream.text(), "data: a\n\n");
    assert!(sender.is_woken());
    assert_pending!(sender.poll());
    assert_eq!(stream.text(), "data: b\n\n");
}
