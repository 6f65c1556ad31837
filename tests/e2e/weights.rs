//! Weights that are packed once, and mapped by every start after that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::command::{command, said};
use super::engine;
use super::server::{Server, wait};
use super::tiny_model;
use super::workspace::Workspace;

const PACKED: &str = "weights packed, written to the cache and mapped";
const MAPPED: &str = "weights mapped from the cache";
const MEMORY: &str = "weights packed into memory";

/// A workspace without training whose weights are kept at `place`.
fn workspace(place: &str) -> Workspace {
    Workspace::with_config(&format!(
        "model = {:?}\nmodel_name = \"tiny\"\n\
         [engine]\nkv_cache_mb = 16\nweights_cache = {place:?}\n\
         [exam]\nprompts = 12\nfacts = 4\n[gather]\nenabled = false\n",
        tiny_model::directory()
    ))
}

fn text(server: &Server) -> String {
    server.chat("tiny", "What now?", 12).text().to_string()
}

fn kept(place: &Path) -> Option<PathBuf> {
    let list = |path: &Path| {
        let entries = fs::read_dir(path).into_iter().flatten();
        entries.flatten().map(|e| e.path()).collect::<Vec<_>>()
    };
    let mut files = list(place).into_iter().flat_map(|shelf| list(&shelf));
    files.find(|path| path.extension().is_some_and(|e| e == "weights"))
}

/// Sums of a field of /proc/PID/smaps over the mappings of files of weights, in kB.
fn mapped_kb(server: &Server, field: &str) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", server.pid())).unwrap();
    let (mut inside, mut sum) = (false, 0);
    for line in smaps.lines() {
        let first = line.split(' ').next().unwrap();
        if !first.ends_with(':') {
            inside = line.ends_with(".weights");
        } else if inside && first.trim_end_matches(':') == field {
            let words: Vec<&str> = line.split_whitespace().collect();
            sum += words[1].parse::<u64>().unwrap();
        }
    }
    sum
}

#[test]
fn the_second_start_maps_what_the_first_packed_and_both_share_it() {
    if engine::lacks("a packed model of its own") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let at = place.path().join("weights");
    let config = at.to_string_lossy();
    let (one, two, without) = (workspace(&config), workspace(&config), workspace("off"));
    let plain = Server::start(&without);
    assert!(plain.log().contains(MEMORY), "{}", plain.log());
    let expected = text(&plain);
    drop(plain);

    let first = Server::start(&one);
    assert!(first.log().contains(PACKED), "{}", first.log());
    assert_eq!(text(&first), expected);
    let file = wait("weights that are kept", || kept(&at));
    let second = Server::start(&two);
    assert!(second.log().contains(MAPPED), "{}", second.log());
    assert_eq!(text(&second), expected);

    let size = fs::metadata(&file).unwrap().len() >> 10;
    for server in [&first, &second] {
        assert_eq!(mapped_kb(server, "Private_Dirty"), 0);
        assert_eq!(mapped_kb(server, "Anonymous"), 0);
        let (resident, share) = (mapped_kb(server, "Rss"), mapped_kb(server, "Pss"));
        assert!(resident + 4 >= size, "{resident} kB of {size} are resident");
        assert!(
            share <= resident * 2 / 3,
            "{share} kB of {resident} are its own"
        );
    }
    // A process that has it mapped keeps it when it is removed.
    fs::remove_file(&file).unwrap();
    assert_eq!(text(&second), expected);
    drop((first, second));
    let again = Server::start(&two);
    assert!(again.log().contains(PACKED), "{}", again.log());
    assert_eq!(text(&again), expected);
}

#[test]
fn servers_that_start_at_once_answer_alike_and_damage_is_mended() {
    if engine::lacks("a packed model of its own") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let at = place.path().join("weights");
    let config = at.to_string_lossy();
    let workspaces: Vec<Workspace> = (0..3).map(|_| workspace(&config)).collect();
    let answers: Vec<String> = std::thread::scope(|scope| {
        let start = |workspace| scope.spawn(move || text(&Server::start(workspace)));
        let starts: Vec<_> = workspaces.iter().map(start).collect();
        starts.into_iter().map(|s| s.join().unwrap()).collect()
    });
    let logs: Vec<String> = workspaces.iter().map(|w| w.read("log")).collect();
    let packed = logs.iter().filter(|log| log.contains(PACKED)).count();
    // One that packed and was ended before the file had its name left nothing.
    assert!(packed >= 1, "{logs:?}");
    assert!(logs.iter().all(|log| !log.contains(MEMORY)), "{logs:?}");
    assert!(answers.iter().all(|text| *text == answers[0]));

    // A damaged byte is found before anything is served, and said.
    let start = || Server::start(&workspaces[0]);
    drop(start());
    let server = start();
    let file = wait("weights that are kept", || kept(&at));
    drop(server);
    let mut bytes = fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    fs::remove_file(&file).unwrap();
    fs::write(&file, bytes).unwrap();
    let mut read_only = fs::metadata(&file).unwrap().permissions();
    read_only.set_readonly(true);
    fs::set_permissions(&file, read_only).unwrap();
    let server = start();
    let log = server.log();
    assert!(log.contains("kept weights are damaged"), "{log}");
    assert!(log.contains(PACKED), "{log}");
    assert_eq!(text(&server), answers[0]);
}

#[test]
fn without_room_for_the_cache_a_server_starts_and_says_what_to_set() {
    if engine::lacks("a packed model of its own") {
        return;
    }
    let workspace = workspace("realign.toml/not-a-directory");
    let server = Server::start(&workspace);
    let log = server.log();
    assert!(log.contains(MEMORY), "{log}");
    assert!(log.contains("packed weights are not kept"), "{log}");
    assert!(log.contains("set engine.weights_cache"), "{log}");
    assert!(!text(&server).is_empty());
    drop(server);

    // A full disk, for which a limit on the size of files stands here.
    let place = tempfile::tempdir().unwrap();
    let at = place.path().join("weights");
    let model = tiny_model::directory().to_string_lossy().into_owned();
    let plain = command(&workspace, &["model", "info", &model]);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(plain.get_program())
        .args(plain.get_args())
        .current_dir(workspace.path(""))
        .env("REALIGN_ENGINE__WEIGHTS_CACHE", &at)
        .env("REALIGN_LOG", "info");
    engine::choose(&mut limited);
    let output = limited.output().unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(kept(&at).is_none(), "{said}");
}
