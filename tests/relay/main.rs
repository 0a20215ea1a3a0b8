//! The relay between independent HTTP/2 ends: the `h2` crate asks and answers, every byte is checked.

mod bytes;
mod world;

use world::World;

#[tokio::test]
async fn a_call_crosses_with_its_headers_payload_and_trailers() {
    let world = World::start().await;
    let mut caller = world.caller().await;
    let answer = caller.call("/shop.Greeter/Hello", 100, 200).await.expect("answered");
    assert_eq!((answer.status, answer.grpc_status.as_deref()), (200, Some("0")));
    assert_eq!(answer.bytes, 200);
}

#[tokio::test]
async fn thousands_of_calls_on_one_connection_keep_their_bytes_apart() {
    let world = World::start().await;
    let caller = world.caller().await;
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..2_000u64 {
        let mut caller = caller.clone();
        calls.spawn(async move {
            let answer = caller
                .call("/shop.Greeter/Hello", i % 700, (i * 37) % 90_000)
                .await
                .expect("answered");
            assert_eq!(answer.bytes, (i * 37) % 90_000);
        });
        if calls.len() >= 64 {
            calls.join_next().await.expect("one is running").expect("it held");
        }
    }
    while let Some(done) = calls.join_next().await {
        done.expect("it held");
    }
}
