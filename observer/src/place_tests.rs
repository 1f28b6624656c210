use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const ME: Trusted = Trusted { user: 1000, sudo_user: None };

fn stat(user: u32, group: u32, mode: u32) -> Stat {
    let mut stat = fs::stat("/").unwrap();
    (stat.st_uid, stat.st_gid, stat.st_mode) = (user, group, 0o40_000 | mode);
    stat
}

#[test]
fn a_directory_is_safe_if_no_other_user_can_rename_in_it() {
    for safe in [
        (0, 0, 0o755),
        (1000, 50, 0o755),
        (0, 0, 0o1777),
        (0, 50, 0o1775),
        (1000, 1000, 0o775),
        (0, 0, 0o775),
    ] {
        assert_eq!(ME.objection(&stat(safe.0, safe.1, safe.2)), None, "{safe:?}");
    }
    for (user, group, mode, why) in [
        (1001, 1001, 0o700, "user 1001"),
        (1001, 0, 0o1777, "user 1001"),
        (0, 0, 0o777, "not sticky"),
        (0, 50, 0o2775, "group 50"),
        (1000, 100, 0o770, "group 100"),
    ] {
        let said = ME.objection(&stat(user, group, mode)).unwrap();
        assert!(said.contains(why), "{said}");
    }
    let root = Trusted { user: 0, sudo_user: Some(1000) };
    assert_eq!(root.objection(&stat(1000, 1000, 0o755)), None, "who called sudo is root already");
    assert!(Trusted { user: 0, sudo_user: None }.objection(&stat(1000, 1000, 0o755)).is_some());
}

#[test]
fn own_links_and_relative_ways_are_followed() {
    let root = tempfile::tempdir().unwrap();
    let inside = root.path().join("a/b");
    std::fs::create_dir_all(&inside).unwrap();
    symlink("a", root.path().join("link")).unwrap();
    symlink(root.path(), inside.join("back")).unwrap();
    symlink("loop", root.path().join("loop")).unwrap();
    let file = root.path().join("a/b/file");
    std::fs::write(&file, "x").unwrap();
    let way = root.path().join("link/b/back/a/../a/./b/new");
    let (directory, name) = parent(&way).unwrap();
    assert_eq!(name, "new");
    let (found, meant) = (fs::fstat(&directory).unwrap(), fs::stat(&inside).unwrap());
    assert_eq!((found.st_dev, found.st_ino), (meant.st_dev, meant.st_ino));
    let error = parent(&root.path().join("loop/new")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    let error = parent(&root.path().join("a/none/new")).unwrap_err();
    assert!(error.kind() == ErrorKind::NotFound && error.to_string().contains("a/none"), "{error}");
    assert!(parent(&file.join("new")).is_err());
    assert!(parent(Path::new("/")).is_err());
    let text = |path: &Path| {
        std::io::read_to_string(open_to_read(path, OFlags::empty()).unwrap()).unwrap()
    };
    assert_eq!(text(&root.path().join("link/b/file")), "x");
    // What a shell passes for <(COMMAND).
    let open = File::open(&file).unwrap();
    assert_eq!(text(Path::new(&format!("/dev/fd/{}", open.as_raw_fd()))), "x");
}

#[test]
fn a_run_that_others_may_change_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let doubts = || doubts(&fs::open(root.path(), OFlags::RDONLY, Mode::empty()).unwrap()).unwrap();
    let (one, two) = (root.path().join("one"), root.path().join("two"));
    std::fs::write(&one, "").unwrap();
    std::fs::write(&two, "").unwrap();
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(&one, 0o644);
    allow(&two, 0o600);
    assert_eq!(doubts(), [""; 0]);
    allow(&one, 0o666);
    assert!(doubts()[0].starts_with("one in"), "{:?}", doubts());
    allow(&two, 0o602);
    allow(root.path(), 0o777);
    let said = doubts();
    assert!(
        said[0].contains("other users may write") && said[1].contains("one and 1 more"),
        "{said:?}"
    );
}
