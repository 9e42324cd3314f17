//! Ids as people read and type them.

use std::time::Duration;

use ado_proto::ids::{Reference, ReferenceError, SHORT_LEN, is_name};
use ado_proto::spec::{Input, MAX_SPEC, SpecError, TaskSpec};
use ado_proto::{Epoch, GroupId, Namespace, Offset, Principal, Role, TaskId, Timestamp};
use proptest::prelude::*;
use uuid::Uuid;

fn reference(text: &str) -> Result<Reference, ReferenceError> {
    text.parse()
}

#[test]
fn short_ids_are_the_random_tail() {
    let id = Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 | (31 << 45) | 1);
    assert_eq!(TaskId(id).short(), "task-z000000001");
    assert_eq!(GroupId(id).short(), "group-z000000001");
}

#[test]
fn references_are_read_as_people_type_them() {
    let task = |tail: &str| Ok(Reference::Task(tail.into()));
    assert_eq!(reference("task-7k2m9x0qvb"), task("7k2m9x0qvb"));
    assert_eq!(reference("7k2m"), task("7k2m"));
    assert_eq!(reference("TASK-7K2M"), task("7k2m"));
    assert_eq!(reference("group-7k2m"), Ok(Reference::Group("7k2m".into())));
    assert_eq!(reference("task-oIl0"), task("0110"), "letters that look like digits are those digits");
    let full = Uuid::from_u128(7);
    assert_eq!(reference(&full.to_string()), Ok(Reference::Full(full)));

    assert_eq!(reference("task-7k2"), Err(ReferenceError::TooShort("task-7k2".into())));
    assert_eq!(reference("x"), Err(ReferenceError::TooShort("x".into())));
    for text in [
        "",
        "task-",
        "group-",
        "task-7k2m9x0qvbb",
        "task-7k2u",
        "task-7k2é",
        "task-7k-2m",
        "group_7k2m",
        "nightly build",
    ] {
        assert_eq!(reference(text), Err(ReferenceError::NotAnId(text.into())));
    }
}

#[test]
fn principals_are_read_strictly() {
    let ann = Principal { role: Role::User, namespace: Namespace("team.a".into()), name: "ann@example.com".into() };
    assert_eq!("ado://team.a/user/ann@example.com".parse(), Ok(ann.clone()));
    assert_eq!(ann.to_string(), "ado://team.a/user/ann@example.com");
    for text in [
        "",
        "ado://",
        "ado://default",
        "ado://default/user",
        "ado://default/user/",
        "ado://default/user/a/b",
        "ado://default/user/a b",
        "ado://default/user/..",
        "ado:///user/a",
        "ado://../user/a",
        "ado://default/root/a",
        "ado://default/User/a",
        "ADO://default/user/a",
        "https://default/user/a",
        " ado://default/user/a",
        "ado://default/user/a\0",
    ] {
        assert!(text.parse::<Principal>().is_err(), "{text:?}");
    }
}

#[test]
fn names_are_safe_as_files_and_arguments() {
    for name in ["a", "A-1", "x_y.z", "ann@example.com", "_", "@a", &"x".repeat(63)] {
        assert!(is_name(name), "{name}");
    }
    for name in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "a\0", &"x".repeat(64)] {
        assert!(!is_name(name), "{name}");
    }
}

#[test]
fn positions_do_not_wrap() {
    assert_eq!(Offset(0).next(), Offset(1));
    assert_eq!(Epoch(u64::MAX).next(), Epoch(u64::MAX));
    assert_eq!(Timestamp(5).after(Duration::from_micros(2)), Timestamp(7));
    assert_eq!(Timestamp(5).after(Duration::MAX), Timestamp(i64::MAX));
    assert_eq!(Timestamp(5).since(Timestamp(7)), Duration::ZERO);
    assert_eq!(Timestamp(i64::MAX).since(Timestamp(i64::MIN)), Duration::from_micros(i64::MAX as u64));
}

#[test]
fn a_task_that_could_run_nowhere_is_refused() {
    let good = TaskSpec::new("shell", Input::Text("echo hi".into()));
    let check = |change: fn(&mut TaskSpec)| {
        let mut spec = good.clone();
        change(&mut spec);
        spec.check()
    };
    assert_eq!(good.check(), Ok(()));
    assert_eq!(check(|spec| spec.input = Input::Argv(vec![])), Err(SpecError::NoProgram));
    assert_eq!(check(|spec| spec.input = Input::Argv(vec!["".into()])), Err(SpecError::NoProgram));
    assert!(matches!(check(|spec| spec.agent = "../x".into()), Err(SpecError::Name { what: "an agent", .. })));
    assert!(matches!(check(|spec| spec.pool = "".into()), Err(SpecError::Name { what: "a pool", .. })));
    let label = check(|spec| drop(spec.labels.insert("a b".into(), "c".into())));
    assert!(matches!(label, Err(SpecError::Name { what: "a label", .. })));
    assert_eq!(check(|spec| drop(spec.env.insert("A=B".into(), "".into()))), Err(SpecError::Variable("A=B".into())));
    assert_eq!(check(|spec| drop(spec.env.insert("A".into(), "b\0".into()))), Err(SpecError::Nul("b\\0".into())));
    assert_eq!(check(|spec| spec.cwd = Some("\0".into())), Err(SpecError::Nul("\\0".into())));
    let long = check(|spec| spec.input = Input::Text("x".repeat(MAX_SPEC)));
    assert!(matches!(long, Err(SpecError::TooLong(size)) if size > MAX_SPEC));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_short_id_and_its_prefixes_name_the_task(id: u128, length in 4..=SHORT_LEN) {
        let short = TaskId(Uuid::from_u128(id)).short();
        let tail = &short["task-".len()..];
        prop_assert_eq!(tail.len(), SHORT_LEN);
        prop_assert_eq!(reference(&short), Ok(Reference::Task(tail.into())));
        prop_assert_eq!(reference(&tail[..length]), Ok(Reference::Task(tail[..length].into())));
    }

    #[test]
    fn principals_are_read_as_they_are_written(namespace in "[a-z0-9][a-zA-Z0-9._@-]{0,62}", name in "[a-z_][a-zA-Z0-9._@-]{0,62}") {
        for role in [Role::Admin, Role::User, Role::Viewer, Role::Worker, Role::Controller] {
            let principal = Principal { role, namespace: Namespace(namespace.clone()), name: name.clone() };
            prop_assert_eq!(principal.to_string().parse(), Ok(principal));
        }
    }

    #[test]
    fn no_text_panics(text: String) {
        let _ = reference(&text);
        let _ = text.parse::<Principal>();
        let _ = text.parse::<TaskId>();
        let _ = text.parse::<Role>();
    }
}
