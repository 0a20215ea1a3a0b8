//! Control's own directory: for its user alone, nobody else's, and on a disk that may be full.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use support::{Control, Member, Program, User, build};

#[test]
fn a_full_disk_is_named_and_once_there_is_room_control_makes_the_authority_that_it_had_begun() {
    support::test(|mesh| {
        let mut control = mesh.control_to_be(&[])?;
        let disk = Disk::of(control.state(), "4k")?;
        // There is room for the root's key, then for its certificate too, and then for all.
        let mut key = None;
        for size in ["4k", "8k"] {
            disk.resize(size)?;
            let told = fails(start(&control, User::Root)?)?;
            ensure!(
                told.contains("No space left on device") && told.contains("/state/"),
                "with {size} control says: {told}"
            );
            let now = fs::read_to_string(control.state().join("root-key.pem")).context("the key has room")?;
            ensure!(*key.get_or_insert(now.clone()) == now, "another key was made");
            let halves = files(control.state())?
                .into_iter()
                .filter(|(file, _)| file.ends_with("new"));
            ensure!(halves.count() == 0, "half a file was left");
        }
        disk.resize("64k")?;
        control.launch()?;
        let now = fs::read_to_string(control.state().join("root-key.pem"))?;
        ensure!(key == Some(now), "another key was made");
        for (file, mode) in files(control.state())? {
            let private = if file.ends_with("roots") { 0o700 } else { 0o600 };
            ensure!(mode == private, "{} has mode {mode:o}", file.display());
        }

        // Nothing is written where nothing changes: a full disk keeps nobody out.
        let _ = fs::write(control.state().join("filler"), vec![7; 128 << 10]);
        let pod = mesh.pod("joins")?;
        let member = Member {
            account: "joins",
            app: "joins",
            ports: &[],
        };
        let _sidecar = pod.member(&control, &member, &[])?;
        ensure!(!control.output().contains("panicked"), "control panicked");
        Ok(())
    });
}

#[test]
fn a_state_directory_of_somebody_elses_is_refused_and_one_that_cannot_be_entered_is_named() {
    support::test(|mesh| {
        let control = mesh.control_to_be(&[])?;
        let state = control.state();
        fs::create_dir(state)?;
        // Open to all, and an application's.
        fs::set_permissions(state, fs::Permissions::from_mode(0o777))?;
        chown(state, Some(1_000), Some(1_000))?;
        let told = fails(start(&control, User::Sidecar)?)?;
        ensure!(told.contains("belongs to user 1000"), "control says: {told}");
        fs::set_permissions(state, fs::Permissions::from_mode(0o700))?;
        let told = fails(start(&control, User::Sidecar)?)?;
        ensure!(
            told.contains("/state") && told.contains("Permission denied"),
            "control says: {told}"
        );
        ensure!(
            files(state).is_ok_and(|files| files.iter().all(|(file, _)| file.ends_with("roots"))),
            "a key was made"
        );

        // Its own, and closed.
        fs::remove_dir_all(state)?;
        fs::create_dir(state)?;
        fs::set_permissions(state, fs::Permissions::from_mode(0o700))?;
        chown(state, Some(2_102), Some(2_102))?;
        let mut program = start(&control, User::Sidecar)?;
        program.says("control serves sidecars", SOON)?;
        ensure!(!program.output().contains(" WARN "), "it warns: {}", program.output());
        ensure!(program.stop(SOON)?.success(), "it does not stop well");

        // What others may read is said.
        fs::set_permissions(state.join("root-key.pem"), fs::Permissions::from_mode(0o644))?;
        let mut program = start(&control, User::Sidecar)?;
        program.says("control serves sidecars", SOON)?;
        let output = program.output();
        let warned = output
            .lines()
            .any(|line| line.contains("can look at what is secret") && line.contains("root-key.pem"));
        ensure!(warned, "it does not warn: {output}");
        Ok(())
    });
}

fn start(control: &Control, user: User) -> Result<Program> {
    let pod = control.pod();
    let mut command = pod.command(user, pod.place(&build::injector()?)?);
    command.arg("control").arg("--source").arg(control.source());
    command.arg("--state").arg(control.state());
    pod.start("control", command)
}

/// Waits for its end, which is none that was asked for; what it said.
fn fails(mut program: Program) -> Result<String> {
    let status = program.wait(SOON)?;
    let output = program.output();
    ensure!(status.code() == Some(1), "it ended with {status}: {output}");
    ensure!(!output.contains("panicked"), "it panicked: {output}");
    Ok(output)
}

/// Whatever is in a directory, and below, with its mode.
fn files(directory: &Path) -> Result<Vec<(PathBuf, u32)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let (path, metadata) = (
            entry.as_ref().map(fs::DirEntry::path),
            entry.as_ref().map(fs::DirEntry::metadata),
        );
        let (Ok(path), Ok(Ok(metadata))) = (path, metadata) else {
            continue;
        };
        if metadata.is_dir() {
            all.extend(files(&path)?);
        }
        all.push((path, metadata.permissions().mode() & 0o777));
    }
    Ok(all)
}

/// A disk of a size, in memory, until it drops.
struct Disk(PathBuf);

impl Disk {
    fn of(path: &Path, size: &str) -> Result<Disk> {
        fs::create_dir_all(path)?;
        let options = format!("size={size},mode=700");
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .context("a tmpfs cannot be mounted")?;
        Ok(Disk(path.to_owned()))
    }

    fn resize(&self, size: &str) -> Result<()> {
        let options = format!("size={size}");
        mount(
            Some("tmpfs"),
            &self.0,
            Some("tmpfs"),
            MsFlags::MS_REMOUNT,
            Some(options.as_str()),
        )
        .context("a tmpfs cannot be resized")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

const SOON: Duration = Duration::from_secs(15);
