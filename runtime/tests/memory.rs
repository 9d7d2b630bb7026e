//! In a process of its own: what it holds is compared.

use std::time::Duration;

use tidegate_runtime::memory::{give_back, resident};

const MIB: u64 = 1024 * 1024;

#[tokio::test]
async fn what_a_peak_has_left_is_given_back_once_the_process_is_idle() {
    let before = resident().unwrap();
    tokio::spawn(give_back());
    tokio::task::yield_now().await;
    // Small pieces, of which the last stays: nothing before it is given back by itself.
    let mut pieces: Vec<Vec<u8>> = (0..64 * 1024).map(|_| vec![1; 1024]).collect();
    let last = pieces.pop();
    drop(pieces);
    let left = resident().unwrap();
    assert!(left > before + 32 * MIB, "{left} bytes of {before}");
    let given_back = async {
        while resident().unwrap() > before + 8 * MIB {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), given_back).await.expect("nothing was given back");
    drop(last);
}
