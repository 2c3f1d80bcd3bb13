//! The laws of a backplane, for each that there is.

#[macro_use]
mod contract;

mod memory {
    use super::contract;
    use tower_sse::backplane::Memory;

    async fn log(retained: usize) -> Memory {
        Memory::with_window(retained)
    }

    contract!(log);
}
