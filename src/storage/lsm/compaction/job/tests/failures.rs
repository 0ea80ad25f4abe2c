//! Merges that are given up or fail: nothing has happened, and they can be done again.

use super::*;
use crate::storage::lsm::cache::BlockCache;
use crate::storage::lsm::open_files::OpenFiles;
use crate::util::fs::sim::{Effect, Fault, Operation};

/// An engine with four tables in level 0, the files that belong to it, and the merge of all four.
fn ready() -> (Engine, Vec<String>, Vec<Input>) {
    let mut engine = Engine::new(tiny());
    for flush in 0..4u8 {
        (0..40).for_each(|key| engine.put(&format!("{key:03}"), &[flush; 50]));
        engine.view();
        engine.flush();
    }
    let files = engine.files();
    let inputs = vec![Input { level: 0, tables: engine.version().level(0).tables().to_vec() }];
    (engine, files, inputs)
}

fn merge(engine: &Engine, inputs: &[Input], abort: &AtomicBool) -> Result<Option<VersionEdit>> {
    engine.job(&engine.version(), &engine.readers(), (inputs, 6), abort).run()
}

#[test]
fn a_merge_that_is_given_up_leaves_nothing() {
    let (engine, files, inputs) = ready();
    let abort = AtomicBool::new(true);
    assert_eq!(merge(&engine, &inputs, &abort).expect("no error"), None);
    assert_eq!(engine.files(), files);
}

#[test]
fn a_merge_that_fails_at_any_step_leaves_nothing_and_can_be_done_again() {
    let abort = AtomicBool::new(false);
    let steps = {
        let (engine, _, inputs) = ready();
        let before = engine.fs.steps();
        merge(&engine, &inputs, &abort).expect("merged");
        before..engine.fs.steps()
    };
    assert!(steps.clone().count() > 10, "several tables");
    for step in steps {
        for effect in [Effect::Io, Effect::DiskFull, Effect::ShortWriteDiskFull] {
            let (mut engine, files, inputs) = ready();
            engine.fs.inject(Fault::at_step(step, effect));
            let what = format!("{effect:?} at step {step}");
            let error = merge(&engine, &inputs, &abort).expect_err(&what);
            assert!(matches!(error, Error::Io { .. } | Error::DiskFull { .. }), "{error:?}");
            assert_eq!(engine.files(), files, "{what}");
            engine.run(&Choice::Merge { inputs, to: 6 });
            engine.check(&what);
        }
    }
}

#[test]
fn what_cannot_be_removed_is_an_orphan_for_the_next_opening() {
    let (engine, files, inputs) = ready();
    engine.fs.inject(Fault::next(Operation::Sync, ".sst", Effect::Io));
    engine.fs.inject(Fault::next(Operation::Remove, ".sst", Effect::Io));
    merge(&engine, &inputs, &AtomicBool::new(false)).expect_err("it fails");
    assert!(engine.files().len() > files.len());
    let fs = engine.fs.restart(1);
    let directory = TableDirectory::new(
        OpenFiles::new(Arc::new(fs.clone()), 8),
        DIR.into(),
        BlockCache::new(0),
        7,
    );
    let manifest = Manifest::open(&directory).expect("opened");
    directory.remove_orphans().expect("removed");
    assert_eq!(manifest.version().tables().count(), 4);
    assert_eq!(fs.list(Path::new(DIR)).expect("listed"), files);
}

#[test]
fn a_damaged_input_is_an_error_that_names_it() {
    let (engine, files, inputs) = ready();
    let path = inputs[0].tables[2].path();
    engine.fs.corrupt(&path, 40, 1).expect("flipped");
    let error = merge(&engine, &inputs, &AtomicBool::new(false)).expect_err("damaged");
    assert!(matches!(&error, Error::Corruption { file, .. } if *file == path), "{error:?}");
    assert_eq!(engine.files(), files);
}

#[test]
fn a_merge_that_survives_a_crash_before_its_commit_has_not_happened() {
    let (engine, _, inputs) = ready();
    let edit = merge(&engine, &inputs, &AtomicBool::new(false)).expect("merged").expect("done");
    let fs = engine.fs.restart(3);
    let directory = TableDirectory::new(
        OpenFiles::new(Arc::new(fs.clone()), 8),
        DIR.into(),
        BlockCache::new(0),
        7,
    );
    let manifest = Manifest::open(&directory).expect("opened");
    directory.remove_orphans().expect("removed");
    assert_eq!(manifest.version().level(0).tables().len(), 4);
    for table in edit.added {
        assert!(!fs.exists(&directory.table_path(table.number)).expect("asked"));
        assert!(directory.allocate().0 > FileNumber(0));
    }
}
