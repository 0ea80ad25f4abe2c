//! The life of a manifest without mishaps.

use super::*;

#[test]
fn what_was_committed_is_there_after_opening_and_nothing_else() {
    let fs = new_disk(1);
    let told = tell(&fs);
    assert!(told.error.is_none(), "{:?}", told.error);
    let manifest = open(&fs).expect("opened");
    assert_eq!(Some(state(&manifest)), told.state);
    assert_eq!(names(&fs), names_of(&manifest));
}

#[test]
fn a_manifest_that_has_grown_is_followed_by_a_new_one() {
    let fs = new_disk(1);
    let mut engine = Engine::create(&fs).expect("created");
    let first = engine.manifest.current.number;
    let mut told = Told::default();
    let mut largest = 0;
    for number in 0..500 {
        engine.step(number, &mut told).expect("committed");
        largest = largest.max(engine.manifest.current.end);
        // One flush may pass the limit before the next commit sees it.
        let snapshot = engine.manifest.current.snapshot_end;
        assert!(engine.manifest.current.end < snapshot * REWRITE_FACTOR + 300);
    }
    assert!(engine.manifest.current.number > first);
    assert_eq!(names(&fs), names_of(&engine.manifest), "the last manifest was removed");
    assert_eq!(state(&open(&fs).expect("opened")), state(&engine.manifest));
}

#[test]
fn orphans_are_removed_and_what_is_not_ours_stays() {
    let fs = new_disk(1);
    drop(tell(&fs));
    let orphans = ["000777.sst", "000778.manifest", "CURRENT.tmp"];
    let others = ["1.sst", "000001.sst.bak", "notes", "LOCK"];
    for name in orphans.iter().chain(&others) {
        fs.create(&path(name)).expect("created");
    }
    let engine = Engine::open(&fs).expect("opened");
    let left = names(&fs);
    assert!(orphans.iter().all(|name| !left.contains(&(*name).to_owned())), "{left:?}");
    assert!(others.iter().all(|name| left.contains(&(*name).to_owned())), "{left:?}");
    assert!(engine.directory.allocate().0 > FileNumber(778), "numbers of orphans are not reused");
}

#[test]
fn a_file_goes_with_the_last_version_that_names_it() {
    let fs = new_disk(1);
    let mut engine = Engine::create(&fs).expect("created");
    let added = engine.flush(0).expect("written");
    let held = engine.manifest.commit(&added).expect("committed");
    let table = held.level(0).tables()[0].number();
    let removed = VersionEdit { removed: vec![(0, table)], ..VersionEdit::default() };
    drop(engine.manifest.commit(&removed).expect("committed"));
    assert_eq!(engine.directory.remove_garbage().expect("removed"), 0, "a reader has it");
    drop(held);
    assert_eq!(engine.directory.remove_garbage().expect("removed"), 1);
    assert_eq!(names(&fs), names_of(&engine.manifest));
}

#[test]
fn a_table_that_moves_stays_the_same_table() {
    let fs = new_disk(1);
    let mut engine = Engine::create(&fs).expect("created");
    let flush = engine.flush(0).expect("written");
    let before = engine.manifest.commit(&flush).expect("committed");
    let after = engine.manifest.commit(&engine.move_oldest()).expect("committed");
    assert!(Arc::ptr_eq(&before.level(0).tables()[0], &after.level(6).tables()[0]));
    drop((before, after));
    assert_eq!(engine.directory.remove_garbage().expect("removed"), 0);
}

#[test]
fn a_checkpoint_is_a_manifest_of_its_own() {
    let fs = new_disk(1);
    drop(tell(&fs));
    let engine = Engine::open(&fs).expect("opened");
    let copy = PathBuf::from("/copy");
    fs.create_dir_all(&copy).expect("made");
    for (_, table) in engine.manifest.version().tables() {
        let name = table.number().table_name();
        fs.hard_link(&table.path(), &copy.join(name)).expect("linked");
    }
    let at_copy = || {
        TableDirectory::new(
            OpenFiles::new(Arc::new(fs.clone()), 8),
            copy.clone(),
            BlockCache::new(0),
            8,
        )
    };
    Manifest::create(&at_copy(), engine.manifest.version()).expect("created");
    let opened = Manifest::open(&at_copy()).expect("opened");
    assert_eq!(state(&opened), state(&engine.manifest));
    let (_, table) = opened.version().tables().next().expect("there are some");
    assert!(table.path().starts_with(&copy));
}

#[test]
fn an_edit_that_does_not_fit_changes_nothing() {
    let fs = new_disk(1);
    let mut engine = Engine::create(&fs).expect("created");
    let flush = engine.flush(3).expect("written");
    engine.manifest.commit(&flush).expect("committed");
    let number = flush.added[0].number;
    let moved = |to, removed| VersionEdit {
        added: vec![AddedTable { level: to, ..flush.added[0].clone() }],
        removed,
        flushed: None,
    };
    let unfit = [
        (VersionEdit { removed: vec![(1, number)], ..VersionEdit::default() }, "is not in level 1"),
        (VersionEdit { removed: vec![(7, number)], ..VersionEdit::default() }, "level 7"),
        (moved(1, vec![]), "is there twice"),
        (moved(9, vec![(0, number)]), "level 9"),
        (engine.flush(2).expect("written"), "goes back"),
        (VersionEdit { flushed: None, ..engine.flush(4).expect("written") }, "holds write 40"),
        (
            VersionEdit {
                added: vec![engine.write_table(0, 3).expect("written")],
                ..VersionEdit::default()
            },
            "overlap in level 0",
        ),
    ];
    let before = state(&engine.manifest);
    for (edit, why) in unfit {
        let error = engine.manifest.commit(&edit).expect_err(why);
        assert!(matches!(&error, Error::Invalid(text) if text.contains(why)), "{error}, {why}");
    }
    assert_eq!(state(&engine.manifest), before);
    assert_eq!(state(&open(&fs).expect("opened")), before);
}
