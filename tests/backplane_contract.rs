//! The laws of a backplane, for each that there is.

#[macro_use]
mod contract;

mod memory {
    use super::contract;
    use futures_util::StreamExt;
    use tower_sse::backplane::{Backplane, Memory, Read, Record, Start};

    async fn log(retained: usize) -> Memory {
        Memory::with_window(retained)
    }

    contract!(log);

    #[tokio::test]
    async fn a_loss_is_told_with_the_place_of_the_last_record_that_is_gone() {
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
}
