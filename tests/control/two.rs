//! Two controls over one directory and one authority: either is enough.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use support::{Control, Family, Mesh};

use crate::shop::{Shop, certified, none_failed, timed};

#[test]
fn two_controls_that_start_together_make_one_authority_and_sidecars_of_one_that_dies_go_to_the_other() {
    support::test(|mesh| {
        let (first, mut second) = two(mesh)?;
        let made = |what: &str| first.output().matches(what).count() + second.output().matches(what).count();
        ensure!(
            made("a root was made") == 1,
            "{} roots were made",
            made("a root was made")
        );
        ensure!(
            made("an issuer was made") == 1,
            "{} issuers were made",
            made("an issuer was made")
        );
        ensure!(
            fs::read_dir(first.state().join("roots"))?.count() == 1,
            "there are several roots"
        );

        let both = format!("{},{}", first.at(Family::V4)?, second.at(Family::V4)?);
        let settings = [("PORTUNUS_CONTROL_ADDRESS", both.as_str())];
        let mut shop = Shop::open(mesh, first, 2, &settings, &[])?;
        let traffic = shop.calls(100, Duration::from_secs(120))?;
        timed(SOON, "all have a stream", || {
            streams(&shop.control) + streams(&second) == 3.0
        })?;
        println!("streams: {} and {}", streams(&shop.control), streams(&second));

        shop.control.kill()?;
        let moved = timed(SOON, "all streams are at the second", || streams(&second) == 3.0)?;
        ensure!(moved < Duration::from_secs(2), "that took {moved:?}");
        let before: Vec<_> = shop.sidecars().map(certified).collect();
        timed(
            Duration::from_secs(50),
            "every certificate was renewed by the second",
            || {
                shop.sidecars()
                    .zip(&before)
                    .all(|(sidecar, before)| certified(sidecar) > *before)
            },
        )?;
        shop.control.launch()?;
        // It says goodbye, and waits until all have heard it.
        second.stop()?;
        let moved = timed(SOON, "all streams are at the first", || streams(&shop.control) == 3.0)?;
        ensure!(moved < Duration::from_secs(2), "that took {moved:?}");
        none_failed(&traffic.calls(), 2_000, "while controls came and went")
    });
}

/// Two of them, begun at the same moment where nothing was.
fn two(mesh: &Mesh) -> Result<(Control, Control)> {
    let mut first = mesh.control_to_be(&["--certificate-lifetime", "1m"])?;
    let mut second = first.beside(mesh.pod("control-2")?);
    first.begin()?;
    second.begin()?;
    for control in [&first, &second] {
        let ready = || control.admin("/ready").is_ok_and(|ready| ready.status == 200);
        support::wait_until(SOON, "both are ready", ready)?;
    }
    Ok((first, second))
}

fn streams(control: &Control) -> f64 {
    control
        .metrics()
        .map_or(-1.0, |metrics| metrics.sum("portunus_control_streams", &[]))
}

const SOON: Duration = Duration::from_secs(15);
