use super::*;

fn file(name: &str, text: &str) -> Text {
    Text {
        path: name.into(),
        text: text.to_owned(),
    }
}

fn from_file(text: &str) -> Result<Config> {
    Config::from_layers([file("f.toml", text)], |_| Ok(None), &[])
}

#[test]
fn each_layer_overrides_the_one_before_and_is_named() {
    let site = file(
        "site.toml",
        "pool = \"1G\"\nreconnect = 1\nencrypt = true\nrsh = \"a\"\n",
    );
    let user = file(
        "user.toml",
        "\n# mine\nreconnect = 2\nencrypt = false\nrsh = \"b\"\n",
    );
    let variable = |name: &str| {
        let value = match name {
            "DRAGON_ENCRYPT" => Some("true"),
            "DRAGON_RSH" => Some("c"),
            // As good as none.
            "DRAGON_POOL" => Some(""),
            _ => None,
        };
        Ok(value.map(str::to_owned))
    };
    let options = [(&keys::RSH, "d".to_owned())];
    let config = Config::from_layers([site, user], variable, &options).unwrap();
    let of = |key: &Key| {
        let (value, source) = config.get(key).unwrap();
        format!("{value} {source}")
    };
    assert_eq!(of(&keys::POOL), "1G site.toml:1");
    assert_eq!(of(&keys::RECONNECT), "2 user.toml:3");
    assert_eq!(of(&keys::ENCRYPT), "true DRAGON_ENCRYPT in the environment");
    assert_eq!(of(&keys::RSH), "d --rsh");
    assert_eq!(of(&keys::LABEL), "none default");
    assert!(config.get(&keys::TIME_LIMIT).is_none());
}

#[test]
fn what_is_wrong_in_a_file_is_named_with_its_line() {
    let table = [
        (
            "pool = \"1G\"\npoool = \"2G\"\n",
            "f.toml:2: there is no setting 'poool'; did you mean 'pool'?",
        ),
        (
            "zzzzzz = 1\n",
            "f.toml:1: there is no setting 'zzzzzz'; dragon config --sample",
        ),
        (
            "\nreconnect = 301\n",
            "f.toml:2: reconnect: '301' is no whole number of seconds from 0 to 300",
        ),
        ("reconnect = 1.5\n", "f.toml:1: reconnect: '1.5'"),
        (
            "pool = 1024\n",
            "f.toml:1: pool: 1024 is below the minimum of 4M",
        ),
        (
            "label = \"host\"\n",
            "f.toml:1: label: 'host' is none of none, node, full",
        ),
        (
            "[network]\ninterface = \"ib0\"\n",
            "f.toml:1: there is no setting 'network'",
        ),
        ("[pool]\nsize = 1\n", "f.toml:1: pool is a table"),
        ("encrypt = \n", "f.toml:1:"),
        (
            "encrypt = 2020-01-01\n",
            "f.toml:1: encrypt is a date; true or false is wanted",
        ),
        ("pool = \"1G\"\npool = \"2G\"\n", "f.toml:2: duplicate key"),
        ("interface = \"10.0.0.0/64\"\n", "f.toml:1: interface:"),
        (
            "transport = \"ofi\"\n",
            "f.toml:1: transport: there is no transport 'ofi'",
        ),
    ];
    for (text, expected) in table {
        let error = format!("{:#}", from_file(text).unwrap_err());
        assert!(error.starts_with(expected), "{text:?}: {error}");
    }
}

#[test]
fn values_in_files_have_their_natural_types() {
    let config = from_file(
        "pool = 8_388_608\ninterface = [\"ib0\", \"ib1\"]\nencrypt = true\nports = 7575\ntime_limit = 90\n",
    );
    let config = config.unwrap();
    assert_eq!(config.number(&keys::POOL), Some(8 << 20));
    assert_eq!(config.text(&keys::INTERFACE), "ib0,ib1");
    assert!(config.is_on(&keys::ENCRYPT));
    assert_eq!(config.ports(), (7575, 7575));
    assert_eq!(
        config.time(&keys::TIME_LIMIT),
        Some(Duration::from_secs(90))
    );
}

#[test]
fn a_bad_variable_is_named() {
    let variable = |name: &str| Ok((name == "DRAGON_ENCRYPT").then(|| "maybe".to_owned()));
    let error = Config::from_layers([], variable, &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "DRAGON_ENCRYPT: 'maybe' is neither true nor false"
    );
}

#[test]
fn what_the_launcher_sends_is_what_it_had() {
    let text = "pool = \"6M\"\nlabel = \"full\"\ntime_limit = \"1-00:00:05\"\nports = \"20-30\"\nrsh = \"x\"\nencrypt = true\nplacement = \"local\"\n";
    let config = from_file(text).unwrap();
    let there = Config::from_pairs(&config.pairs()).unwrap();
    for key in KEYS {
        let value = |config: &Config| config.get(key).map(|(value, _)| value.clone());
        let expected = match key.reach {
            Reach::Launcher => key.default_value(),
            _ => value(&config),
        };
        assert_eq!(value(&there), expected, "{}", key.name);
    }
    let unknown = [("color".to_owned(), "red".to_owned())];
    assert!(
        Config::from_pairs(&unknown)
            .unwrap_err()
            .to_string()
            .contains("'color'")
    );
}

#[test]
fn every_default_is_within_its_limits_and_every_name_is_in_order() {
    for key in KEYS {
        assert_eq!(
            key.default_value().is_none(),
            key.default.is_empty(),
            "{}",
            key.name
        );
        assert_eq!(
            key.default.is_empty(),
            !key.otherwise.is_empty(),
            "{}",
            key.name
        );
        assert!(
            key.name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
            "{}",
            key.name
        );
    }
}

#[test]
fn the_sample_sets_nothing_and_can_be_switched_on_line_by_line() {
    let sample = print::sample();
    let config = from_file(&sample).unwrap();
    assert_eq!(config.pairs(), []);
    let settings = sample
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.starts_with(' '));
    let settings: Vec<_> = settings.collect();
    assert_eq!(settings.len(), KEYS.len());
    let config = from_file(&settings.join("\n")).unwrap();
    for key in KEYS {
        assert!(
            matches!(config.get(key), Some((_, Source::File(..)))),
            "{}",
            key.name
        );
    }
}

/// `DRAGON_TEST_WRITE=1 cargo test -p dragon-daemon --lib shipped` writes them anew.
#[test]
fn the_files_that_are_shipped_are_those_of_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (sample, page) = (
        root.join("deploy/dragond.toml"),
        root.join("docs/command.md"),
    );
    let text = fs::read_to_string(&page).unwrap();
    let begin = text.find("| setting | what |").unwrap();
    let length = text[begin..].find("\n\n").unwrap() + 1;
    if std::env::var_os("DRAGON_TEST_WRITE").is_some() {
        let table = print::markdown();
        fs::write(
            &page,
            [&text[..begin], &table, &text[begin + length..]].concat(),
        )
        .unwrap();
        return fs::write(sample, print::sample()).unwrap();
    }
    assert_eq!(
        fs::read_to_string(sample).unwrap(),
        print::sample(),
        "write it anew"
    );
    assert_eq!(
        &text[begin..begin + length],
        print::markdown(),
        "write it anew"
    );
}
