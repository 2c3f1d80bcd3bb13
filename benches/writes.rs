//! What a write to a socket costs its thread: of one piece of memory, of several, and of several that
//! are first copied into one. Direct streams write as they do because of these figures.
//!
//! ```text
//! cargo bench -p tower-sse-benches --bench writes
//! ```

#![allow(clippy::disallowed_methods)] // Real time is what is measured.

use std::{
    array,
    io::{IoSlice, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 15;

/// How many writes there are in a round.
const WRITES: u64 = 5_000;

/// The processor time of this thread, in nanoseconds.
fn cpu_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A socket whose other end reads all that comes.
fn socket() -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let socket = TcpStream::connect(address).expect("a connection");
    socket.set_nodelay(true).expect("a socket");
    let (mut other, _) = listener.accept().expect("a connection");
    thread::spawn(move || {
        let mut bytes = vec![0; 1 << 18];
        while other.read(&mut bytes).is_ok_and(|read| read > 0) {}
    });
    socket
}

fn write_parts(socket: &mut TcpStream, parts: &[IoSlice<'_>]) {
    let size = parts.iter().map(|part| part.len()).sum::<usize>();
    let written = socket.write_vectored(parts).expect("a reader");
    assert_eq!(written, size, "the socket blocks until it has room");
}

fn write_copied(socket: &mut TcpStream, parts: &[IoSlice<'_>]) {
    let mut whole = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    for part in parts {
        whole.extend_from_slice(part);
    }
    socket.write_all(&whole).expect("a reader");
}

/// The median cost of each, in nanoseconds, in rounds that take turns.
fn medians<const N: usize>(mut writes: [&mut dyn FnMut(); N]) -> [u64; N] {
    let mut times = array::from_fn(|_| Vec::new());
    for round in 0..=ROUNDS {
        for (write, times) in writes.iter_mut().zip(&mut times) {
            let start = cpu_time();
            (0..WRITES).for_each(|_| write());
            if round > 0 {
                times.push((cpu_time() - start) / WRITES);
            }
        }
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    })
}

fn main() {
    println!("an event and its chunk's two lines, in nanoseconds of the writing thread:");
    for size in [100, 1_000, 4_000, 8_000, 16_000, 32_000] {
        let event = vec![b'x'; size];
        let head = format!("{size:X}\r\n");
        let parts = [head.as_bytes(), &event, b"\r\n"];
        let parts = parts.map(IoSlice::new);
        let whole = parts.iter().flat_map(|part| part.iter().copied());
        let whole: Vec<u8> = whole.collect();
        let [mut first, mut second, mut third] = array::from_fn(|_| socket());
        let [in_one, copied, in_three] = medians([
            &mut || first.write_all(&whole).expect("a reader"),
            &mut || write_copied(&mut second, &parts),
            &mut || write_parts(&mut third, &parts),
        ]);
        println!(
            "  {size} B: {in_one} in one piece, {copied} copied into one, {in_three} in three"
        );
    }
    println!("eight events of 150 B, each in its chunk:");
    let events = vec![b'x'; 150];
    let parts: [_; 8] = array::from_fn(|_| IoSlice::new(&events));
    let [mut first, mut second] = array::from_fn(|_| socket());
    let [copied, in_eight] = medians([&mut || write_copied(&mut first, &parts), &mut || {
        write_parts(&mut second, &parts)
    }]);
    println!("  {copied} copied into one, {in_eight} in eight pieces");
}
