//! The laws of a backplane, for `Memory`.

use futures_util::StreamExt;
use tower_sse::backplane::{Backplane, Memory, Read, Record, Start};

async fn log(retained: usize) -> Memory {
    Memory::with_window(retained)
}

support::contract!(log);

#[tokio::test]
async fn loss_carries_the_position_of_the_last_lost_record() {
    let log = Memory::with_window(1);
    let mut places = Vec::new();
    for _ in 0..3 {
        let record = Record::new("a".try_into().unwrap(), "data: x\n");
        places.push(log.append(record).await.unwrap());
    }
    let mut stream = log.read(Start::Window).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert!(matches!(first, Read::Lost(place) if place == places[1]));
}
