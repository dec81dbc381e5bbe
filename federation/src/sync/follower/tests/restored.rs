//! Followers of a store that went back: what it lost, and who makes that good.

use super::*;

/// The store was restored from a backup: what is held and was said after it stays, and is written
/// back for all the others.
#[tokio::test(start_paused = true)]
async fn a_restored_store_takes_nothing_away_and_gets_back_what_it_lost() {
    for written_past in [false, true] {
        let before = store().await;
        commit(&*before, changes(vec![put("a", 1), put("old", 1)], 1)).await;
        commit(&*before, changes(vec![put("b", 2), (key("old"), None)], 2)).await;
        commit(&*before, changes(vec![put("a", 3)], 3)).await;
        let mut process = Process::new();
        process.catch_up(&before).await;

        let restored = store().await;
        commit(&*restored, changes(vec![put("a", 1), put("old", 1)], 1)).await;
        if written_past {
            for n in 0..9 {
                let ops = vec![Op::put("/tombolo/local/v1/x", n.to_string())];
                restored.commit(Txn { guards: vec![], ops }).await.unwrap();
            }
        }
        process.catch_up(&restored).await;
        assert_eq!(process.seen().other_histories, 1, "{written_past}");
        assert_eq!(process.seen().resume_point(), None, "from a disk, nobody would miss anything");
        assert!(process.names().contains(&"b".to_owned()), "what was said since stays");
        assert!(!process.names().contains(&"old".to_owned()), "what was removed since is not back");
        let held = process.writer.current();
        let sequence = held.get(&key("a")).unwrap().origin().unwrap().sequence;
        assert_eq!(sequence, 3, "nothing goes back");

        let election = vec![Op::put(facts::election_key(), "me")];
        restored.commit(Txn { guards: vec![], ops: election }).await.unwrap();
        let leading = store::read(&*restored, &facts::election_key()).await.unwrap().unwrap();
        process.catch_up(&restored).await;
        let mut leader = Leader::new(
            Arc::<Embedded>::clone(&restored),
            store::Guard::CreateRevision(facts::election_key(), leading.create_revision),
            process.writer.subscribe(),
        );
        let written = reseed(&mut leader, &process.following.subscribe()).await.unwrap();
        assert_eq!(written, 3, "b, a as it was last, and that old is gone");
        let mut other = Process::new();
        other.catch_up(&restored).await;
        assert!(other.names().contains(&"b".to_owned()));
        let newest = other.writer.current().holding(&owner()).unwrap().newest().cloned();
        assert_eq!(newest, Some(Newest { epoch: epoch(), sequence: 3 }));
        process.catch_up(&restored).await;
        assert!(process.seen().lost.owners.is_empty(), "{:?}", process.seen().lost);
        assert!(process.seen().resume_point().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_spoke_to_the_restored_store_wins_over_what_was_lost() {
    let before = store().await;
    commit(&*before, changes(vec![put("a", 1), put("b", 2)], 2)).await;
    let mut process = Process::new();
    process.catch_up(&before).await;
    let restored = store().await;
    commit(&*restored, changes(vec![put("a", 1)], 1)).await;
    process.catch_up(&restored).await;
    assert_eq!(process.seen().lost.owners.len(), 1);

    // It says all anew, without b.
    let mut anew = changes(vec![put("a", 5)], 5);
    anew.complete = vec![(Kind::Namespace, epoch())];
    commit(&*restored, anew).await;
    let election = vec![Op::put(facts::election_key(), "me")];
    restored.commit(Txn { guards: vec![], ops: election }).await.unwrap();
    let leading = store::read(&*restored, &facts::election_key()).await.unwrap().unwrap();
    let mut leader = Leader::new(
        Arc::<Embedded>::clone(&restored),
        store::Guard::CreateRevision(facts::election_key(), leading.create_revision),
        process.writer.subscribe(),
    );
    // Before this process has seen it, and after.
    let stale = Arc::clone(&process.seen().lost);
    let lost = &stale.owners[&owner()];
    let seed = crate::sync::reseed::Seed {
        records: vec![(key("b"), Some(value("b", 2)))],
        said_revision: lost.said_revision,
        ..Default::default()
    };
    let written = crate::sync::reseed::seed_owner(&leader, &owner(), seed).await.unwrap();
    assert_eq!(written, 0);
    process.catch_up(&restored).await;
    assert_eq!(process.names(), ["a"]);
    assert_eq!(reseed(&mut leader, &process.following.subscribe()).await.unwrap(), 0);
}

/// What was lost is not in the store to be deleted: the owner's word alone says that it is gone.
#[tokio::test(start_paused = true)]
async fn what_its_owner_removes_after_a_restore_goes_although_the_store_had_lost_it() {
    let before = store().await;
    commit(&*before, changes(vec![put("a", 1)], 1)).await;
    commit(&*before, changes(vec![put("b", 2), put("c", 2)], 2)).await;
    let mut process = Process::new();
    process.catch_up(&before).await;
    let restored = store().await;
    commit(&*restored, changes(vec![put("a", 1)], 1)).await;
    process.catch_up(&restored).await;
    assert_eq!(process.names(), ["a", "b", "c"]);

    commit(&*restored, changes(vec![(key("b"), None)], 3)).await;
    process.catch_up(&restored).await;
    assert_eq!(process.names(), ["a", "c"]);
    let lost = process.seen().lost;
    let lost = &lost.owners[&owner()];
    assert_eq!(lost.keys.keys().collect::<Vec<_>>(), [&key("c")]);
    let said = store::read(&*restored, &facts::said_key(&owner())).await.unwrap().unwrap();
    assert_eq!(lost.said_revision, said.mod_revision, "writing c back is not writing over that");
}

/// The owner changed a record, the store was restored to before, and the owner took its change
/// back: it need not say again what the store has.
#[tokio::test(start_paused = true)]
async fn what_a_restored_store_has_and_its_owner_confirms_is_not_withdrawn() {
    let before = store().await;
    commit(&*before, changes(vec![put("a", 1)], 1)).await;
    commit(&*before, changes(vec![put("a", 2)], 2)).await;
    let mut process = Process::new();
    process.catch_up(&before).await;
    let restored = store().await;
    commit(&*restored, changes(vec![put("a", 1)], 1)).await;
    process.catch_up(&restored).await;
    let mut confirmed = changes(Vec::new(), 3);
    confirmed.complete = vec![(Kind::Namespace, epoch())];
    commit(&*restored, confirmed).await;
    process.catch_up(&restored).await;
    assert_eq!(process.names(), ["a"]);
    let held = process.writer.current();
    assert_eq!(held.get(&key("a")).unwrap().origin().unwrap().sequence, 1);
}

/// A peer was restored to before a removal, and the cluster, started anew since, has the record
/// still: what its mirror writes here is news, in one commit with the cluster's word or after it.
#[tokio::test(start_paused = true)]
async fn what_was_removed_and_its_owner_confirms_is_there_again() {
    for at_once in [true, false] {
        let store = store().await;
        commit(&*store, changes(vec![put("a", 1), put("b", 2)], 2)).await;
        let mut process = Process::new();
        process.catch_up(&store).await;
        commit(&*store, changes(vec![(key("a"), None)], 3)).await;
        process.catch_up(&store).await;
        assert_eq!(process.names(), ["b"]);

        let newest = |sequence| {
            let epoch = Epoch { count: 2, ..epoch() };
            Some(Newest { epoch, sequence })
        };
        let complete = vec![(Kind::Namespace, Epoch { count: 2, ..epoch() })];
        let confirmed = Changes { newest: newest(1), complete, ..Changes::default() };
        let again = vec![put("a", 1)];
        if at_once {
            commit(&*store, Changes { items: again, ..confirmed }).await;
        } else {
            commit(&*store, confirmed).await;
            let items = again;
            commit(&*store, Changes { items, newest: newest(2), ..Changes::default() }).await;
        }
        process.catch_up(&store).await;
        assert_eq!(process.names(), ["a", "b"], "at once: {at_once}");
        assert!(process.seen().lost.owners.is_empty());
    }
}

/// A leader that does not know of the restore would make the store look complete.
#[tokio::test(start_paused = true)]
async fn nothing_is_said_on_top_of_what_a_restored_store_has_lost() {
    let at = |sequence| [(owner(), changes(vec![put("a", sequence)], sequence))].into();
    let (before, restored) = (store().await, store().await);
    let election = vec![Op::put(facts::election_key(), "me")];
    for store in [&before, &restored] {
        let txn = Txn { guards: vec![], ops: election.clone() };
        assert!(store.commit(txn).await.unwrap().is_done());
        commit(&**store, changes(vec![put("a", 1)], 1)).await;
    }
    let leading = store::read(&*before, &facts::election_key()).await.unwrap().unwrap();
    let fence = store::Guard::CreateRevision(facts::election_key(), leading.create_revision);
    let there = store::list(&*restored, "/").await.unwrap();
    let (_, replicas) = replica::channel();
    let mut leader = Leader::new(Arc::<Embedded>::clone(&before), fence, replicas);
    leader.commit_changes(at(2), None).await.unwrap();
    leader.commit_changes(at(3), None).await.unwrap();
    // Its lease and its key are in the backup.
    leader.store = Arc::<Embedded>::clone(&restored);
    let refused = leader.commit_changes(at(4), None).await;
    assert!(matches!(refused, Err(LeaderError::NotLeader)), "{refused:?}");
    assert_eq!(store::list(&*restored, "/").await.unwrap(), there, "nothing was written");
}

/// A seed of several transactions, read after the first and after the last.
#[tokio::test(start_paused = true)]
async fn what_is_half_written_back_is_not_gone_for_who_reads_it_then() {
    let items: Vec<_> = (0..300).map(|n| put(&format!("n{n}"), 1)).collect();
    let before = store().await;
    commit(&*before, changes(items.clone(), 1)).await;
    let mut process = Process::new();
    process.catch_up(&before).await;
    let restored = store().await;
    let election = vec![Op::put(facts::election_key(), "me")];
    restored.commit(Txn { guards: vec![], ops: election }).await.unwrap();
    let leading = store::read(&*restored, &facts::election_key()).await.unwrap().unwrap();
    let mut leader = Leader::new(
        Arc::<Embedded>::clone(&restored),
        store::Guard::CreateRevision(facts::election_key(), leading.create_revision),
        process.writer.subscribe(),
    );
    process.catch_up(&restored).await;
    let seeded = reseed(&mut leader, &process.following.subscribe()).await.unwrap();
    assert_eq!(seeded, items.len());
    let written = store::list(&*restored, "/").await.unwrap().1;
    assert!(written > 3, "several transactions");

    for read_at in 2..=written {
        let mut other = Process::new();
        other.catch_up(&before).await;
        let range =
            store::Range { prefix: "/".into(), after: None, limit: 1000, revision: Some(read_at) };
        let entries = restored.range(range).await.unwrap().entries;
        let batch = other.state.listed(&other.writer.current(), entries, read_at);
        let gone = batch.items.iter().filter(|(_, value)| value.is_none()).count();
        assert_eq!(gone, 0, "at {read_at} of {written}");
    }
}

/// Says, as `speaker`, that `incarnation` of the cluster left.
async fn leave(store: &dyn Store, speaker: &str, incarnation: &str) {
    let speaker = Owner::region(speaker.parse().unwrap());
    let what = Decided::Leave { owner: owner(), incarnation: incarnation.into() };
    let key = crate::sync::decisions::key(&speaker.region, &what);
    let at = jiff::Timestamp::UNIX_EPOCH;
    let body = Body::Decision(Decision { by: "op".into(), at, note: String::new(), what });
    let origin = Origin { epoch: epoch(), sequence: 1, ..Origin::default() };
    let value = Record { key: key.clone(), origin, body }.seal().value;
    let newest = Some(Newest { epoch: epoch(), sequence: 1 });
    let changes = Changes { items: vec![(key, Some(value))], newest, ..Changes::default() };
    for txn in transactions([(speaker, changes)].into(), None).unwrap() {
        assert!(store.commit(txn).await.unwrap().is_done());
    }
}

/// That somebody of its name left once, or that a third says so, takes nothing away from it.
#[tokio::test(start_paused = true)]
async fn a_store_without_an_owner_has_lost_it_unless_its_region_says_that_this_one_left() {
    let key = Key::of_owner(owner(), Kind::Cluster);
    let origin = Origin { epoch: epoch(), sequence: 1, ..Origin::default() };
    let body = Body::Cluster(Cluster { uid: "uid".into(), ..Cluster::default() });
    let cluster = Record { key: key.clone(), origin, body }.seal().value;
    for (speaker, incarnation, stays) in
        [("r", "uid", false), ("r", "old", true), ("s", "uid", true)]
    {
        let before = store().await;
        commit(&*before, changes(vec![(key.clone(), Some(cluster.clone())), put("a", 1)], 1)).await;
        let mut process = Process::new();
        process.catch_up(&before).await;
        let now = store().await;
        leave(&*now, speaker, incarnation).await;
        process.catch_up(&now).await;
        assert_eq!(process.seen().other_histories, 1);
        let there = process.names().contains(&"a".to_owned());
        assert_eq!(there, stays, "{speaker} says that {incarnation} left");
        assert_eq!(process.seen().lost.owners.contains_key(&owner()), stays);
    }
}

#[tokio::test(start_paused = true)]
async fn a_region_that_was_forgotten_is_with_all_its_clusters_and_as_that_one_only() {
    let region = Owner::region("r".parse().unwrap());
    let key = Key::of_owner(region.clone(), Kind::Region);
    let origin = Origin { epoch: epoch(), sequence: 1, ..Origin::default() };
    let body = Body::Region(Region { incarnation: "i".into(), ..Region::default() });
    let said = Record { key: key.clone(), origin, body }.seal().value;
    for (incarnation, stays) in [("i", false), ("old", true)] {
        let before = store().await;
        commit(&*before, changes(vec![put("a", 1)], 1)).await;
        let newest = Some(Newest { epoch: epoch(), sequence: 1 });
        let items = vec![(key.clone(), Some(said.clone()))];
        let changes = Changes { items, newest, ..Changes::default() };
        for txn in transactions([(region.clone(), changes)].into(), None).unwrap() {
            assert!(before.commit(txn).await.unwrap().is_done());
        }
        let mut process = Process::new();
        process.catch_up(&before).await;
        let now = store().await;
        let ops = vec![facts::left_op(&region.region, incarnation)];
        now.commit(Txn { guards: vec![], ops }).await.unwrap();
        process.catch_up(&now).await;
        assert_eq!(process.names() == ["a"], stays, "{incarnation}");
        assert_eq!(process.writer.current().get(&key).is_some(), stays);
        assert_eq!(process.seen().lost.owners.len(), if stays { 2 } else { 0 });
    }
}
