//! The stages, images and contexts that a target needs.

use std::collections::HashSet;

use super::*;

#[test]
fn only_dependencies_of_the_target_are_planned() {
    let source = "FROM debian AS a\nRUN 1\nFROM missing AS b\nRUN 2\nFROM scratch\nCOPY --from=a /x /\n";
    let g = graph(source);
    let texts: Vec<&str> = g.vertices.iter().map(|v| v.text.as_str()).collect();
    assert_eq!(texts, ["FROM debian", "RUN 1", "FROM scratch", "COPY --from=a /x /"]);
    assert_eq!(g.vertices[1].name.to_string(), "a 2/2");
    assert_eq!(g.vertices[3].name.to_string(), "stage-2 2/2");
    assert_eq!(g.vertices[3].inputs(), [VertexId::new(1), VertexId::new(2)]);
    let target = Parameters { target: Some("A".into()), ..params() };
    assert_eq!(graph_with(source, &target).vertices.len(), 2);
    let number = Parameters { target: Some("0".into()), ..params() };
    assert_eq!(graph_with(source, &number).vertices.len(), 2);
}

#[test]
fn stages_that_are_not_built_have_a_valid_base() {
    for (from, problem) in [
        ("NONE", "invalid image name `NONE`"),
        ("$NONE", "image name `$NONE` is empty after expansion"),
        ("--platform=a/b/c/d missing", "invalid platform"),
        ("--platform=$NONE missing", "platform `$NONE` is empty after expansion"),
        ("${X:?gone}", "gone"),
    ] {
        let got = error(&format!("FROM debian AS built\nFROM {from} AS unused\nFROM built\n"));
        assert!(got.contains(problem), "{from}: {got}");
    }
    graph("ARG X=Used\nFROM debian AS USED\nFROM used AS a\nFROM scratch AS b\nFROM missing AS c\nFROM debian\n");
}

#[test]
fn missing_images_are_requested_with_stage_names_for_suggestions() {
    let file = parse(b"FROM debian AS build-client\nFROM scratch\nCOPY --from=build-server /x /\n").unwrap();
    let Ok(Plan::Needs(needs)) = plan(&file, &params(), &debian()) else { panic!() };
    assert_eq!(
        (needs[0].image.text.as_str(), needs[0].stages.as_slice()),
        ("build-server", &["build-client".to_string()][..])
    );
}

#[test]
fn all_images_that_the_target_needs_are_requested_at_once() {
    let source = "FROM scratch AS unused\nCOPY --from=never /x /\n\
                  FROM none-1 AS a\nCOPY --from=none-2 /x /\nCOPY --from=scratch /x /\n\
                  FROM scratch AS replaced\nCOPY --from=never /x /\n\
                  FROM debian AS b\nARG mode=755\n\
                  RUN --mount=type=cache,target=/c,mode=$mode,from=none-3 --mount=type=tmpfs,target=/t x\n\
                  RUN --mount=from=dir,target=/d --mount=from=image,target=/m x\n\
                  FROM none-4\nCOPY --from=a /x /\nCOPY --from=b /x /\nCOPY --from=none-1 /x /\n\
                  COPY --from=replaced /x /\nRUN --mount=type=bind,from=none-6,target=/m x\n";
    let context = |name: &str, source| NamedContext { name: name.into(), platform: None, source };
    let contexts = vec![
        context("dir", directory()),
        context("image", ContextSource::Image(WrittenImage::parse("none-5").unwrap())),
        context("replaced", ContextSource::Scratch),
    ];
    let file = parse(source.as_bytes()).unwrap();
    let Ok(Plan::Needs(needs)) = plan(&file, &Parameters { contexts, ..params() }, &debian()) else { panic!() };
    let names: Vec<&str> = needs.iter().map(|n| n.image.text.as_str()).collect();
    assert_eq!(names, ["none-1", "none-2", "none-3", "none-5", "none-4", "none-6"]);
    for need in needs.iter().filter(|n| n.image.text != "none-5") {
        assert!(source[need.span.start..need.span.end].contains(&need.image.text), "{need:?}");
    }
}

#[test]
fn stages_can_only_be_used_after_their_definition() {
    let used = |line: &str, params: &Parameters| {
        let source = format!("FROM debian AS first\nFROM debian AS a\n{line}\nFROM debian AS later\nFROM a\nRUN x\n");
        match plan(&parse(source.as_bytes()).unwrap(), params, &debian()) {
            Ok(Plan::Graph(_)) => Ok(()),
            Ok(Plan::Needs(needs)) => {
                assert!(needs.len() == 1 && needs[0].later_stage);
                Err(format!("needs {}", needs[0].image.text))
            }
            Err(mut e) => Err(e.remove(0).message),
        }
    };
    let later = |name: &str| Err(format!("stage `{name}` is defined after its use"));
    let image = |name: &str| Err(format!("needs {name}"));
    for (line, want) in [
        ("COPY --from=first x y", Ok(())),
        ("COPY --from=0 x y", Ok(())),
        ("COPY --from=debian x y", Ok(())),
        ("COPY --from=later x y", image("later")),
        ("COPY --from=Later x y", later("Later")),
        ("COPY --from=2 x y", later("2")),
        ("COPY --from=5 x y", Err("stage 5 does not exist".to_string())),
        ("RUN --mount=from=first,target=/m x", Ok(())),
        ("RUN --mount=from=later,target=/m x", image("later")),
        ("RUN --mount=type=cache,from=later,target=/m x", image("later")),
    ] {
        assert_eq!(used(line, &params()), want, "{line}");
    }
    // A stage replaced by a named context may be defined later.
    let context = NamedContext { name: "later".into(), platform: None, source: directory() };
    assert_eq!(used("COPY --from=later x y", &Parameters { contexts: vec![context], ..params() }), Ok(()));
    // FROM can refer only to earlier stages: the name of a later one is an image name.
    let file = parse(b"FROM later AS a\nFROM debian AS later\nFROM a\n").unwrap();
    let Ok(Plan::Needs(needs)) = plan(&file, &params(), &debian()) else { panic!() };
    assert_eq!(needs[0].image.text, "later");
    // Of two stages with the same name, `--from` refers to the last one in the file.
    let twice = "FROM debian AS x\nFROM debian AS a\nCOPY --from=x a b\nFROM debian AS x\nFROM a\n";
    let Ok(Plan::Needs(needs)) = plan(&parse(twice.as_bytes()).unwrap(), &params(), &debian()) else { panic!() };
    assert!(needs[0].image.text == "x" && needs[0].later_stage);
    // `--from` refers to an image of that name if there is one; an image that FROM needs is pulled.
    let named = "FROM debian AS a\nCOPY --from=b x y\nFROM base AS b\nFROM a\n";
    let mut images = debian();
    let base = images.values().next().unwrap().clone();
    images.insert(on_host("b"), base);
    assert!(matches!(plan(&parse(named.as_bytes()).unwrap(), &params(), &images), Ok(Plan::Graph(_))));
    let pulled = "FROM debian AS a\nCOPY --from=b x y\nFROM b AS c\nFROM debian AS b\nFROM a\nCOPY --from=c x y\n";
    let Ok(Plan::Needs(needs)) = plan(&parse(pulled.as_bytes()).unwrap(), &params(), &debian()) else { panic!() };
    assert!(needs.len() == 1 && !needs[0].later_stage, "{needs:?}");
}

#[test]
fn named_contexts_replace_stages_images_and_copy_sources() {
    let with = |name: &str, source| Parameters {
        contexts: vec![NamedContext { name: name.into(), platform: None, source }],
        ..params()
    };
    let texts = |source: &str, params: &Parameters| -> Vec<String> {
        graph_with(source, params).vertices.iter().map(|v| v.text.clone()).collect()
    };
    let source = "FROM nowhere AS base\nRUN 1\nFROM base\nCOPY --from=base /x /\n";
    // A stage: its instructions are ignored.
    assert_eq!(texts(source, &with("BASE", directory())), ["FROM scratch", "context BASE", "COPY --from=base /x /"]);
    // A base image, in any spelling of its name.
    assert_eq!(
        texts(
            "FROM alpine\n",
            &with("docker.io/library/alpine:latest", ContextSource::Image(WrittenImage::parse("debian").unwrap()))
        ),
        ["FROM debian"]
    );
    assert_eq!(texts("FROM alpine\n", &with("alpine", ContextSource::Scratch)), ["FROM scratch"]);
    // A copy reads the directory directly.
    let g = graph_with("FROM scratch\nCOPY --from=src a /\n", &with("src", directory()));
    let Step::Copy(copy) = &g.vertices[1].step else { panic!() };
    assert_eq!(copy.from, FileSource::Named(ContextId::new(0)));
    // Reserved names are never replaced.
    let g = graph_with("FROM scratch\nCOPY a /\n", &with("scratch", directory()));
    assert_eq!(g.vertices.len(), 2);
    // A context for another platform does not apply.
    let other = with("alpine::linux/riscv64", ContextSource::Scratch);
    assert!(matches!(plan(&parse(b"FROM alpine\n").unwrap(), &other, &debian()), Ok(Plan::Needs(_))));
}

#[test]
fn long_chains_of_stages_do_not_recurse() {
    let mut source = String::from("FROM debian AS s0\nRUN 0\n");
    for i in 1..3000 {
        source.push_str(&format!("FROM s{} AS s{i}\nCOPY --from=s{} /x /\n", i - 1, i / 2));
    }
    assert_eq!(graph(&source).vertices.len(), 3001);
    let file = parse(source.as_bytes()).unwrap();
    let Ok(Plan::Needs(needs)) = plan(&file, &params(), &HashMap::new()) else { panic!("no image is resolved") };
    assert_eq!(needs.iter().map(|need| &need.image.text[..]).collect::<Vec<_>>(), ["debian"]);
    let mut source = String::from("FROM scratch AS s0\nCOPY --from=s1 a /\n");
    for i in 1..3000 {
        source.push_str(&format!("FROM scratch AS s{i}\nCOPY --from=s{} a /\n", i + 1));
    }
    source.push_str("FROM s0\n");
    let Ok(Plan::Needs(needs)) = plan(&parse(source.as_bytes()).unwrap(), &params(), &debian()) else { panic!() };
    assert!(needs[0].image.text == "s1" && needs[0].later_stage);
}

#[test]
fn stages_are_needed_by_their_values() {
    const FILE: &str = "ARG KIND=plain\nFROM debian AS plain\nFROM debian AS fancy\nFROM debian AS unused\n\
        FROM debian AS files\nFROM debian AS caches\nFROM ${KIND} AS last\nCOPY --from=files a b\n\
        RUN --mount=type=cache,from=caches,target=/c true\nFROM last AS later\n";
    let with = |target: &str, args: &[(&str, &str)]| {
        let own = |text: &str| text.to_string();
        let build_args = args.iter().map(|(name, value)| (own(name), own(value))).collect();
        Parameters { target: Some(own(target)), build_args, ..params() }
    };
    let replaced = |name: &str| {
        let contexts = vec![NamedContext { name: name.into(), platform: None, source: ContextSource::Scratch }];
        Parameters { contexts, ..with("last", &[]) }
    };
    for (case, params, want) in [
        ("default", with("last", &[]), vec![0, 3, 4, 5]),
        ("number", with("5", &[]), vec![0, 3, 4, 5]),
        ("argument", with("last", &[("KIND", "fancy")]), vec![1, 3, 4, 5]),
        ("image", with("last", &[("KIND", "debian")]), vec![3, 4, 5]),
        ("later", with("later", &[]), vec![0, 3, 4, 5, 6]),
        ("alone", with("PLAIN", &[]), vec![0]),
        ("replaced target", replaced("last"), vec![]),
        ("replaced argument", replaced("plain"), vec![3, 4, 5]),
    ] {
        let stages = analyze(&parse(FILE.as_bytes()).unwrap(), &params).unwrap().stages;
        let needed: Vec<usize> = (0..stages.len()).filter(|i| stages[*i] == StageUse::Needed).collect();
        assert_eq!(needed, want, "{case}");
    }
    let missing = analyze(&parse(FILE.as_bytes()).unwrap(), &with("none", &[])).map(drop).unwrap_err();
    assert_eq!(missing[0].message, "target stage `none` does not exist");
}

/// One name refers to a separate image for each platform in the file.
#[test]
fn an_image_is_resolved_for_each_platform() {
    let file = "FROM --platform=linux/s390x b AS s\nFROM --platform=linux/ppc64le b AS p\nFROM b\n\
                COPY --from=s / /s\nCOPY --from=p / /p\nCOPY --from=b / /b\n";
    let file = parse(file.as_bytes()).unwrap();
    let Ok(Plan::Needs(needs)) = plan(&file, &params(), &HashMap::new()) else { panic!() };
    let platforms: Vec<String> = needs.iter().map(|need| need.platform.to_string()).collect();
    assert_eq!(platforms, ["linux/s390x", "linux/ppc64le", &Platform::host().to_string()]);
    let base = |need: &ImageNeed| {
        let config = ImageConfig::empty(&need.platform);
        (need.key(), BaseImage { manifest: ManifestDigest::of(need.platform.to_string().as_bytes()), config })
    };
    let Ok(Plan::Graph(graph)) = plan(&file, &params(), &needs.iter().map(base).collect()) else { panic!() };
    let images = graph.vertices.iter().filter_map(|vertex| match &vertex.step {
        Step::Image { manifest, platform, .. } => Some((platform.to_string(), *manifest)),
        _ => None,
    });
    let expected = platforms.iter().map(|platform| (platform.clone(), ManifestDigest::of(platform.as_bytes())));
    assert_eq!(images.collect::<HashSet<_>>(), expected.collect());
}

/// A context for the platform of the stage takes precedence over one for all, regardless of their
/// order.
#[test]
fn contexts_are_selected_by_the_platform_of_the_stage() {
    let image = |name: &str, platform: Option<&str>, image: &str| NamedContext {
        name: name.into(),
        platform: platform.map(|platform| platform.parse().unwrap()),
        source: ContextSource::Image(WrittenImage::parse(image).unwrap()),
    };
    let host = Platform::host().to_string();
    let needs = |file: &str, contexts: Vec<NamedContext>| {
        let params = Parameters { contexts, ..params() };
        let Ok(Plan::Needs(needs)) = plan(&parse(file.as_bytes()).unwrap(), &params, &HashMap::new()) else { panic!() };
        needs.iter().map(|need| format!("{} {}", need.image.text, need.platform)).collect::<Vec<_>>()
    };
    let both =
        || vec![image("base", Some("linux/s390x"), "z"), image("base", Some(&host), "own"), image("base", None, "any")];
    for file in ["FROM base\n", "FROM x AS base\nFROM base\n", "FROM scratch\nCOPY --from=base / /\n"] {
        assert_eq!(needs(file, both()), [format!("own {host}")], "{file}");
    }
    for file in ["FROM --platform=linux/s390x base\n", "FROM --platform=linux/s390x x AS base\nFROM base\n"] {
        assert_eq!(needs(file, both()), ["z linux/s390x"], "{file}");
        assert_eq!(needs(file, vec![image("base", None, "any")]), ["any linux/s390x"], "{file}");
    }
}

#[test]
fn a_check_finds_the_mistakes_of_all_stages_that_can_be_planned() {
    let file = "ARG P\nFROM --platform=$P debian AS a\nFROM a AS b\nFROM unknown AS c\nUSER $\nFROM debian AS d\n\
                RUN --mount=type=bind,target=/ true\nFROM --platform=linux/s390x debian AS e\nRUN true\nFROM scratch\n";
    let file = parse(file.as_bytes()).unwrap();
    let messages = |target: Option<&str>| {
        let params = Parameters { target: target.map(str::to_string), ..params() };
        check(&file, &params, &debian())
            .map(|needs| needs.len())
            .map_err(|errors| errors.iter().map(|d| d.message.clone()).collect::<Vec<_>>())
    };
    let errors = messages(None).unwrap_err();
    assert!(
        matches!(&errors[..], [a, d] if a.contains("`$P` is empty") && d.contains("mount target `/`")),
        "{errors:?}"
    );
    assert_eq!(messages(Some("b")).unwrap_err().len(), 1);
    // A base image that is unknown, and one of another platform.
    assert_eq!((messages(Some("c")), messages(Some("e"))), (Ok(1), Ok(1)));
}

/// `FROM --platform` does not change the platform of `scratch` (`resolveReachableStages` of
/// BuildKit).
#[test]
fn scratch_has_the_platform_of_the_build() {
    let platform = |source: &str| graph(source).config.platform().to_string();
    assert_eq!(platform("FROM --platform=linux/s390x scratch\nCOPY a /\n"), Platform::host().to_string());
    let asked = Parameters { platform: "linux/s390x".parse().unwrap(), platform_given: true, ..params() };
    let file = "FROM --platform=$BUILDPLATFORM scratch\nCOPY a /\n";
    assert_eq!(graph_with(file, &asked).config.platform().to_string(), "linux/s390x");
}

/// A stage, even one named `scratch`, keeps its platform regardless of `FROM --platform` (BuildKit,
/// `dispatchState.init`); the result has the requested platform (`finalizeResultImage`).
#[test]
fn only_images_have_the_platform_of_their_from() {
    let host = Platform::host().to_string();
    let asked = Parameters { platform: "linux/s390x".parse().unwrap(), platform_given: true, ..params() };
    for (file, own) in [
        ("FROM scratch AS a\nFROM --platform=linux/riscv64 a\nENV a=b\n", &*host),
        ("FROM --platform=linux/riscv64 scratch AS scratch\nFROM scratch\nENV a=b\n", &host),
    ] {
        assert_eq!(graph(file).config.platform().to_string(), own, "{file}");
        assert_eq!(graph_with(file, &asked).config.platform().to_string(), "linux/s390x", "{file}");
    }
}

/// The variant and the version of the system are those of the base image unless another
/// architecture or a variant is requested; names are normalized (BuildKit, `finalizeResultImage`).
#[test]
fn the_result_keeps_variant_and_version_of_its_base() {
    for (base, asked, file, want) in [
        (r#""amd64","variant":"v2""#, None, "FROM debian", r#""amd64","variant":"v2""#),
        (r#""amd64","variant":"v2""#, Some("linux/amd64"), "FROM debian", r#""amd64","variant":"v2""#),
        (
            r#""amd64","variant":"v2""#,
            Some("linux/amd64"),
            "FROM --platform=linux/amd64 debian",
            r#""amd64","variant":"v2""#,
        ),
        (r#""amd64","variant":"v2""#, Some("linux/amd64/v3"), "FROM debian", r#""amd64","variant":"v3""#),
        (r#""arm64","variant":"v9""#, Some("linux/arm64"), "FROM debian", r#""arm64","variant":"v9""#),
        (r#""arm64","variant":"v8""#, None, "FROM debian", r#""arm64""#),
        (r#""arm""#, None, "FROM debian", r#""arm","variant":"v7""#),
        (r#""arm","variant":"v6""#, Some("linux/s390x"), "FROM debian", r#""s390x""#),
        (r#""amd64","os.version":"10""#, Some("linux/amd64"), "FROM debian", r#""amd64","os.version":"10""#),
        (r#""amd64","os.version":"10""#, Some("linux/arm64"), "FROM debian", r#""arm64""#),
    ] {
        let json = |rest: &str| format!(r#"{{"os":"linux","config":{{}},"architecture":{rest}}}"#);
        let config: ImageConfig = serde_json::from_str(&json(base)).unwrap();
        let base_image = BaseImage { manifest: ManifestDigest::of(b"debian"), config };
        let mut params = params();
        if let Some(asked) = asked {
            params = Parameters { platform: asked.parse().unwrap(), platform_given: true, ..params };
        }
        let platforms = [Some("linux/amd64"), asked].into_iter().flatten().map(|p| p.parse().unwrap());
        let images = platforms
            .chain([params.platform.clone()])
            .map(|platform| (PlatformImage { platform, ..on_host("debian") }, base_image.clone()))
            .collect();
        let Ok(Plan::Graph(graph)) = plan(&parse(format!("{file}\nENV a=b\n").as_bytes()).unwrap(), &params, &images)
        else {
            panic!("{file}")
        };
        let result = serde_json::to_value(&graph.config).unwrap();
        let want: serde_json::Value = serde_json::from_str(&json(want)).unwrap();
        for key in ["os", "architecture", "variant", "os.version"] {
            assert_eq!(result.get(key), want.get(key), "{key} of {file} for {asked:?} with {base}");
        }
    }
}
