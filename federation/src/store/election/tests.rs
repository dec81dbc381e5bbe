use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{campaign, campaign_saying, leader};
use crate::store::Store;
use crate::store::conformance::elections::{self, Pace};
use crate::store::embedded::Embedded;

/// As long as in production, since it costs nothing.
const TTL: Duration = Duration::from_secs(9);
const PACE: Pace = Pace { ttl: TTL, hold: Duration::from_secs(90), late: Duration::from_secs(3) };

async fn store() -> Arc<dyn Store> {
    Arc::new(Embedded::in_memory().await.expect("memory"))
}

#[tokio::test(start_paused = true)]
async fn of_many_candidates_one_leads() {
    elections::of_many_candidates_one_leads(store().await, PACE).await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_is_followed_and_fenced() {
    elections::a_leader_that_is_cut_off_is_followed_and_fenced(store().await, PACE).await;
}

#[tokio::test(start_paused = true)]
async fn lost_before_another_can_lead() {
    elections::lost_before_another_can_lead(store().await, PACE).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_resigns() {
    elections::dropping_resigns(store().await, PACE).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_ends_leadership() {
    elections::a_deleted_key_ends_leadership(store().await, PACE).await;
}

#[tokio::test(start_paused = true)]
async fn a_campaign_outlasts_an_absent_store() {
    elections::a_campaign_outlasts_an_absent_store(store().await, PACE).await;
}

#[tokio::test(start_paused = true)]
async fn a_candidate_says_when_it_won_not_when_it_began_to_wait() {
    let store = store().await;
    let began = Instant::now();
    let first = campaign(Arc::clone(&store), "/leader", "first", TTL).await.unwrap();
    let says = move || format!("second after {:?}", began.elapsed());
    let mut second = tokio::task::JoinSet::new();
    let waits = Arc::clone(&store);
    second.spawn(async move { campaign_saying(waits, "/leader", says, TTL).await });
    tokio::time::sleep(Duration::from_hours(1)).await;
    first.resign().await;
    let _leads = second.join_next().await.unwrap().unwrap().unwrap();
    let says = leader(&*store, "/leader").await.unwrap();
    assert_eq!(says.as_deref(), Some("second after 3600s"));
}
