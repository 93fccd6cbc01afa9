use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use rbuild_dockerfile::parse;
use rbuild_image::{BlobDigest, DiffId, ManifestDigest, Platform};
use rbuild_plan::{
    ContextDir, ContextSource, NamedContext, NetworkMode, Parameters, Plan, Resource, Ulimit, Volume, plan,
};
use rbuild_source::{Fingerprint, SelectionContent};
use rbuild_store::Download;

use super::*;
use crate::cache::explain::masked;
use crate::redact::SecretValues;

const AMD64: &str = "linux/amd64";

/// Returns the keys of all steps of a Dockerfile based on scratch. The content of contexts is a
/// constant.
fn keys(source: &str) -> Vec<String> {
    keys_with(source, &params(AMD64)).iter().map(CacheKey::hex).collect()
}

fn params(platform: &str) -> Parameters {
    let platform: Platform = platform.parse().unwrap();
    let dir = ContextDir { path: "/named".into(), ignore: None };
    let named = NamedContext { name: "ctx".into(), platform: None, source: ContextSource::Directory(dir) };
    Parameters { allow_insecure: true, contexts: vec![named], ..Parameters::new(platform.clone(), platform) }
}

fn keys_with(source: &str, params: &Parameters) -> Vec<CacheKey> {
    let file = parse(source.as_bytes()).unwrap();
    let Ok(Plan::Graph(graph)) = plan(&file, params, &HashMap::new()) else { panic!("{source}") };
    let downloads = DownloadedFiles::of_graph(&graph, &DOWNLOAD);
    let mut results: Vec<ResultId> = Vec::new();
    let mut found = Vec::new();
    for vertex in &graph.vertices {
        let inputs = InputResults::of(&vertex.inputs(), |id| results[id]);
        let keys = KeyBuilder { downloads: &downloads, salt: None };
        let selected = [selection(b"what is copied")];
        let key = keys.definition(vertex, &inputs, &selected).unwrap();
        let keyed = keys.keyed(&graph, vertex, &inputs, &selected).unwrap();
        assert_eq!(key, keyed.map(|keyed| keyed.key));
        found.extend(key);
        results.push(key.map_or_else(|| source_result(&vertex.step), ResultId::from));
    }
    found
}

/// Returns selected files with that content.
fn selection(content: &[u8]) -> Selection {
    let content = SelectionContent { digest: SelectionHash::of(content), fingerprint: Fingerprint::default() };
    Selection { sources: Vec::new(), content }
}

/// The answer to each download.
static DOWNLOAD: LazyLock<Download> =
    LazyLock::new(|| Download { digest: BlobDigest::of(b"file"), size: 4, etag: None, modified: Some(7) });

#[test]
fn variables_of_a_step_are_recorded_as_pairs() {
    let graph = BuildGraph {
        vertices: Vec::new(),
        target: VertexId::new(0),
        config: rbuild_image::ImageConfig::empty(&"linux/amd64".parse().unwrap()),
        history: Vec::new(),
        epoch: None,
        warnings: Vec::new(),
    };
    let secrets = SecretValues::of(&[("id".into(), b"hidden".to_vec())]);
    let variable = KeyComponent::Own(StepPart::Variable("A", "b=hidden"));
    let part = key_part(&variable, &graph, &InputResults::of(&[], |_| panic!()));
    let want = KeyValue::Variable { name: "A".into(), value: "b=****".into() };
    let recorded = masked(KeyInputs { version: KEY_VERSION, parts: vec![part], is_reduced: false }, &secrets);
    assert_eq!(recorded.parts, [KeyPart { name: VARIABLE.into(), value: want }]);
    assert_eq!(StepPart::VARIABLE, VARIABLE);
}

#[test]
fn the_digest_of_a_build_depends_on_every_step_and_file() {
    let whole = |source: &str, files: &str| {
        let file = parse(source.as_bytes()).unwrap();
        let Ok(Plan::Graph(graph)) = plan(&file, &params(AMD64), &HashMap::new()) else { panic!("{source}") };
        let selected = [selection(files.as_bytes())];
        let downloads = DownloadedFiles::of_graph(&graph, &DOWNLOAD);
        let keys = KeyBuilder { downloads: &downloads, salt: None };
        keys.whole_build(&graph, graph.vertices.iter().map(|_| &selected[..])).unwrap()
    };
    let cases = [
        (EVERYTHING.to_string(), "other files"),
        (EVERYTHING.replacen("WORKDIR /w", "WORKDIR /z", 1), "files"),
        (EVERYTHING.replacen("make all", "make", 1), "files"),
        (EVERYTHING.replacen("/f\n", "/g\n", 1), "files"),
        (EVERYTHING.to_string() + "RUN more\n", "files"),
        (EVERYTHING.to_string(), "files"),
    ];
    let distinct: HashSet<CacheKey> = cases.iter().map(|(source, files)| whole(source, files)).collect();
    assert_eq!(distinct.len(), cases.len());
    let commented = EVERYTHING.replacen("WORKDIR /w", "# a comment\nWORKDIR   /w", 1);
    assert_eq!(whole(&commented, "files"), whole(EVERYTHING, "files"));
}

const EVERYTHING: &str = "FROM scratch AS a\nARG WHO=me\nENV E=1\nWORKDIR /w\nCOPY --chown=1:2 --chmod=644 x /y/\n\
    USER 3\nRUN --network=none --mount=type=cache,target=/c --mount=type=secret,id=s make all\n\
    FROM scratch\nCOPY --from=a --link /w /v\nADD <<F /f\ntext\nF\n";

/// Returns the key of the last step of a Dockerfile, or `NAME=VALUE` for a parameter.
fn last_key(case: &str, params: &Parameters) -> String {
    let source = format!("FROM scratch AS other\nCOPY x /\nFROM scratch\n{case}\n");
    keys_with(&source, params).last().expect("there is a step").hex()
}

/// A changed key empties the caches of all users, on all their machines. Change keys only on
/// purpose, and change [`KEY_VERSION`] as well.
#[test]
fn keys_of_all_operations_and_options_are_pinned() {
    let params = params(AMD64);
    let found: Vec<(&str, String)> = KEYS.iter().map(|(case, _)| (*case, last_key(case, &params))).collect();
    let found: Vec<(&str, &str)> = found.iter().map(|(case, key)| (*case, key.as_str())).collect();
    assert_eq!(found, KEYS);
    let distinct: HashSet<&str> = KEYS.iter().map(|(_, key)| *key).collect();
    assert_eq!(distinct.len(), KEYS.len() - EQUAL, "two cases have one key");
}

/// The number of keys in the table that an earlier case has as well.
const EQUAL: usize = 4;

#[test]
fn keys_of_parameters_are_pinned() {
    let with = |change: fn(&mut Parameters)| {
        let mut params = params(AMD64);
        change(&mut params);
        params
    };
    let cases = [
        ("RUN x", with(|params| params.network = NetworkMode::Isolated)),
        ("RUN x", with(|params| params.shm_size = Some(1 << 20))),
        ("RUN x", with(|params| params.hosts = vec![("h".into(), "1.2.3.4".into())])),
        ("RUN x", with(|params| params.ulimits = vec![Ulimit { resource: Resource::Nofile, soft: 1, hard: 2 }])),
        (
            "RUN x",
            with(|params| params.volumes = vec![Volume { source: "/h".into(), target: "/v".into(), read_only: true }]),
        ),
        ("RUN x", with(|params| params.build_args = vec![("BUILDKIT_SANDBOX_HOSTNAME".into(), "me".into())])),
        ("ARG A\nRUN x", with(|params| params.build_args = vec![("A".into(), "1".into())])),
        ("WORKDIR /w", with(|params| params.build_args = vec![("SOURCE_DATE_EPOCH".into(), "7".into())])),
        ("RUN x", params("linux/arm64")),
        ("RUN x", params("linux/arm/v7")),
        // Nothing but commands depends on the platform.
        ("COPY a /d", params("linux/arm64")),
        ("WORKDIR /w", params("linux/arm64")),
    ];
    let found: Vec<String> = cases.iter().map(|(case, params)| last_key(case, params)).collect();
    assert_eq!(found, PARAMETER_KEYS);
    for (case, params) in &cases[10..] {
        assert_eq!(last_key(case, params), last_key(case, &self::params(AMD64)), "{case}");
    }
}

/// The same steps have the same keys on machines with another architecture, other proxies and other
/// addresses of known hosts.
#[test]
fn keys_do_not_depend_on_the_machine() {
    let here = Parameters { hosts: vec![("h".into(), "1.2.3.4".into())], ..params(AMD64) };
    let elsewhere = Parameters {
        host: "linux/arm64".parse().unwrap(),
        emulated: vec!["amd64".into()],
        hosts: vec![("h".into(), "fe80::1".into())],
        build_args: vec![("HTTP_PROXY".into(), "http://proxy:3128".into())],
        ..params(AMD64)
    };
    for (case, _) in KEYS {
        assert_eq!(last_key(case, &here), last_key(case, &elsewhere), "{case}");
    }
}

/// The form of keys that `docs/formats/keys.md` describes, computed by hand.
#[test]
fn keys_are_hashes_of_fields_preceded_by_their_lengths() {
    let frame = |fields: &[&[u8]]| {
        let mut bytes = Vec::new();
        for field in fields {
            bytes.extend((field.len() as u64).to_le_bytes());
            bytes.extend(*field);
        }
        bytes
    };
    let scratch = ResultId::of(&frame(&[b"scratch"]));
    let parent: [&[u8]; 3] = [b"step 5", b"the file system below", scratch.bytes()];
    let workdir: [&[u8]; 6] = [b"directory", b"/w", b"user", b"", b"time", b""];
    let key = CacheKey::of(&frame(&[&parent[..], &workdir].concat()));
    assert_eq!(keys("FROM scratch\nWORKDIR /w"), [key.hex()]);
    let image = ResultId::of(&frame(&[b"image 2", b"linux/amd64", DiffId::of(b"layer").bytes()]));
    assert_eq!(source_result(&image_step("a", AMD64, &[b"layer"])), image);
}

fn image_step(name: &str, platform: &str, layers: &[&[u8]]) -> Step {
    let diff_ids = layers.iter().map(|layer| DiffId::of(layer)).collect();
    let manifest = ManifestDigest::of(name.as_bytes());
    Step::Image { name: name.into(), manifest, platform: platform.parse().unwrap(), diff_ids }
}

#[test]
fn results_of_images_are_pinned_and_depend_on_platform_and_layers_only() {
    let cases = [
        Step::Scratch,
        image_step("a", AMD64, &[b"one", b"two"]),
        image_step("a", AMD64, &[b"two", b"one"]),
        image_step("a", "linux/arm64", &[b"one", b"two"]),
        image_step("a", AMD64, &[]),
    ];
    assert_eq!(cases.each_ref().map(|step| source_result(step).hex()), RESULTS);
    // Another registry, another compression, another label.
    assert_eq!(source_result(&image_step("b", AMD64, &[b"one", b"two"])).hex(), RESULTS[1]);
}

#[test]
fn content_keys_are_pinned() {
    let graph = |source: &str| {
        let file = parse(source.as_bytes()).unwrap();
        let Ok(Plan::Graph(graph)) = plan(&file, &params(AMD64), &HashMap::new()) else { panic!("{source}") };
        graph
    };
    let files = || ReadContent::Files(SelectionHash::of(b"files"));
    let stage = || ReadContent::Result(ResultId::of(b"stage"));
    let parent = ResultId::of(b"parent");
    let cases = [
        ("COPY --from=other a /d", Some(&parent), vec![files()]),
        ("COPY --from=other --link a /d", None, vec![files()]),
        ("RUN --mount=from=other,target=/m x", Some(&parent), vec![stage(), files()]),
    ];
    let found = cases.map(|(case, parent, contents)| {
        let graph = graph(&format!("FROM scratch AS other\nFROM scratch\n{case}\n"));
        content_key(&graph.vertices[graph.target], None, parent, &contents).hex()
    });
    assert_eq!(found, CONTENT_KEYS);
}

#[test]
fn a_changed_step_changes_its_own_key_and_those_of_its_dependants_only() {
    let before = keys(EVERYTHING);
    // Each case replaces text; the number is the first step whose key changes. All later steps
    // depend on it.
    let cases = [
        ("WORKDIR /w", "WORKDIR /z", 0),
        ("ENV E=1", "ENV E=2", 2),
        ("ARG WHO=me", "ARG WHO=you", 2),
        ("--chown=1:2", "--chown=1:3", 1),
        ("--chmod=644", "--chmod=600", 1),
        ("x /y/", "x /y", 1),
        ("USER 3", "USER 4", 2),
        ("--network=none ", "", 2),
        ("make all", "make", 2),
        ("--link /w /v", "/w /v", 3),
        ("/w /v", "/w /u", 3),
        ("/w /v", "/q /v", 3),
        ("text", "other text", 4),
        ("/f\n", "/g\n", 4),
        ("type=secret,id=s", "type=secret,id=other", 2),
        // Comments and spaces are not part of keys.
        ("WORKDIR /w", "# a comment\nWORKDIR   /w", 5),
    ];
    for (old, new, first) in cases {
        let source = EVERYTHING.replacen(old, new, 1);
        assert_ne!(source, EVERYTHING, "{old}");
        let differ: Vec<usize> =
            keys(&source).iter().zip(&before).enumerate().filter(|(_, (a, b))| a != b).map(|(i, _)| i).collect();
        let expected: Vec<usize> = (first..before.len()).collect();
        assert_eq!(differ, expected, "{old} → {new}");
    }
}

/// Instructions and the keys of their last step.
const KEYS: &[(&str, &str)] = &[
    ("WORKDIR /w", "a21f761937deddc37b066291c0e08462c9e8e6c35d6c1ce1161b4ade99f83056"),
    ("USER me\nWORKDIR w", "e68300e2c7046975a641f081e3df933c95c19a42fa25e012aa2acd929cf568ff"),
    ("COPY a /d", "b6f8f9bf11dd18bb40dd1c2ca8bbadb52932a75961baf1de17534b54495cff69"),
    ("COPY a b /d", "b6f8f9bf11dd18bb40dd1c2ca8bbadb52932a75961baf1de17534b54495cff69"),
    ("COPY --chown=u:g a /d", "c9dc62405aa1763290c5af7415977c98ef4a7328af1462ae346171a4ca3f8ec7"),
    ("COPY --chmod=0644 a /d", "a869c1ab9c28220868235d56bfd2890862e2cc4fc2b2e0fe7623ed827e3139e4"),
    ("COPY --chmod=u=rwX,go= a /d", "9fb820f228e04ac1bf31888bdf1245d7cfc4435de840b1b5fbb90a74171e364d"),
    ("COPY --exclude=*.o --exclude=!k.o a /d", "36fb59ed7dd826c123de29b7859fd570c3209beac9cf6b1219e7c2363b61bf88"),
    ("COPY --parents a /d/", "58e7b31cc99348cdd4975ee306b95343e66a670f12e110efbf25c2e62a2529b1"),
    ("COPY --link a /d", "2ae3a7abdca2b2b940156a3748b73a93f19ec5c90ea76d9c9cf346b085f19de1"),
    ("COPY --from=other a /d", "8470821523f4ddf9e69e4aafa068b4ac7cc078034ab619aa2f9277832ac2cbfc"),
    ("COPY --from=other b /d", "c3250acc9d67c93af807575ee7cd3ffbb8b4b45e5cca7dce01cd5df0a803f105"),
    ("COPY --from=ctx a /d", "b6f8f9bf11dd18bb40dd1c2ca8bbadb52932a75961baf1de17534b54495cff69"),
    ("ADD a /d", "e87a06208436e610b01873c8195bbcd483decdaea0bfd37042f843e0409c8ad3"),
    ("ADD --unpack=false a /d", "b6f8f9bf11dd18bb40dd1c2ca8bbadb52932a75961baf1de17534b54495cff69"),
    ("ADD http://a.io/f /d", "5156977287ca1a11eeba33432a448b981f6c49aa9bd1ea00bb687defee2ccd91"),
    ("ADD --unpack=true http://a.io/f /d", "a2aad7c7e6cc028a7f24033bd63e07445256784cd4f144fb3730833ec2d247fd"),
    ("COPY <<a /d\ntext\na", "782269712fea11ad0e4bbbcd56d3939525e50c65e6b49d4868ab3510324c510f"),
    ("RUN x", "26f8f5c516cb3f5470a45da96565c0916af331ea7e64d0665b3bfc515cd47ca7"),
    ("RUN [\"x\", \"a b\"]", "1050b80d7fde7f1ea504ae4c394ac20a4ebcdd286547ca86a563dcfd3f6f0ac9"),
    ("ENV A=1 B=\"two words\"\nRUN x", "9d70f4c9301f2b04b4fa67bfd474e650061fe9ce8676ebd5ef301df22033a49b"),
    ("ARG A=1\nRUN x", "e578e97702886862f3bd9a4a92889e3cdf341642e1cd9f0bbdc2b45b3b2b726f"),
    ("WORKDIR /w\nRUN x", "5098c69e9c729d242dc6d0365aea3a674970aeb205805a82a6e20873a652e9a8"),
    ("USER me:us\nRUN x", "0bedf69e72710170413bae46d5dbe50aabeeb0fbf1b150d5cbb45a1393f486f4"),
    ("SHELL [\"/bin/bash\", \"-ec\"]\nRUN x", "7fd341671ef6fea96a415993cd071f667a25e81259828728ffc3bda7a4c85cd6"),
    ("RUN <<E\n#!/bin/sh\ntext\nE", "6988a8bf82c9d35589442523a568a38ba032d8215661c7cb73561b2065930224"),
    ("RUN <<E\ntext\nE", "f2c15e942e6adaf2cab05c4a290d1909093f2ffda60c34225a4f9c939999c85f"),
    ("RUN --network=none x", "b95adf1e30c1209fc3ad7b6d6ee5b63324468d20c03b189a0b33a632b6dcef4c"),
    ("RUN --security=insecure x", "e929dd596e0c0ae37c3a6c8ab4b3e23e8aa73a11126d8600195720ed830db9d6"),
    ("RUN --mount=type=secret,id=s x", "cf5f07ce29efa1e1ccaecbd411be0fbc024fe23118a5f04a41336263e084cae1"),
    (
        "RUN --mount=type=secret,id=s,target=/t,env=E,required=true,mode=440,uid=1,gid=2 x",
        "eb8978dc6fc6de480c295d25d7c577dccf3cb14433f494b11c2f935d7475f44f",
    ),
    ("RUN --mount=type=secret,id=s,env=E x", "e4d63e4f5682417cec511219d81cacc2db137c3b5f95d65ba644d5990ce60908"),
    ("RUN --mount=type=ssh x", "a252ab0b540b214fe3c8c5baca6750493f0b75fd0227fd9dfaeaad9cce8a1b96"),
    (
        "RUN --mount=type=ssh,id=k,target=/k,required=true,mode=644,uid=1,gid=2 x",
        "394cc95e7448f25f8e3310fdc2f60a46d37bf8d2df8fa9cbfd25770df2579971",
    ),
    ("RUN --mount=type=cache,target=/c x", "73852dc3e12eb9e7f209c73d3f5a5d9f4503a4c68806ad3b560b169427533dd8"),
    (
        "RUN --mount=type=cache,id=i,sharing=locked,target=/c x",
        "5f65ce3b458915dd01368839ea085c00288ab1e470196746a643bed42d1e0f30",
    ),
    (
        "RUN --mount=type=cache,target=/c,from=other,source=/s,mode=700,uid=1,gid=2 x",
        "c07c0896413146013adcaa0542db4608e08e07e3fe22ffde4e8fbd60c01013fd",
    ),
    ("RUN --mount=type=cache,target=/c,from=ctx x", "5189bb753938d77e4010cd30e23ea01c98f889c145ee5fc34161d99910434617"),
    ("RUN --mount=type=cache,target=/c,ro x", "60f49f5dae714de3d4bedbb11cdbc71d336712d72575db336572c20234110016"),
    ("RUN --mount=type=tmpfs,target=/t x", "8e96c535482982f14d11cfa7b14a76c86dc51db926bc7c9e1eebb0acf80b7dda"),
    ("RUN --mount=type=tmpfs,target=/t,size=64m x", "96c44583bb97d6c36beb01fd1971e5afc05946ac4bee94e8f4751e5bdc19c49d"),
    ("RUN --mount=type=bind,source=s,target=/b x", "f2a3383b773a631e5affb68159843d0b7c50ef155a0997b2e83bcb6df702ac71"),
    (
        "RUN --mount=type=bind,source=s,target=/b,rw x",
        "9b76f3035e8fd192f3dc702ea1b8b116d55768e225a69c651ccb5ff7ae41feec",
    ),
    (
        "RUN --mount=type=bind,from=other,source=s,target=/b x",
        "3c211e3fe4c5107d7b57af2dcb2eb8b93e32a2735a55adbd3c012651de227634",
    ),
    ("RUN --mount=type=bind,from=ctx,target=/b x", "f2a3383b773a631e5affb68159843d0b7c50ef155a0997b2e83bcb6df702ac71"),
];

const PARAMETER_KEYS: [&str; 12] = [
    "c840842d5c5ca3bdac52386e9825d3595139656bd40419d1ae24efef322683c8",
    "c78ffd02edc03af537ace09268be92f46d1e7f4e9c26027cd3b91197f458aaa5",
    "ba0d207cc7a926b40c71572cd3fe548c69bea5d20e0f8b6a980463ea8915e0a9",
    "4c6a84495a063f5c3b35b5fd22c0598ed79ce48f907f86be20036b58ecf5d4ee",
    "b6634f1e8d25898eee4d38d69dda5f678a9579d783785fb782aaf05b23b14cb4",
    "67e5607b7308491d798ef14de54190c1e6e3d13928ed26623f79ec756bab7125",
    "e578e97702886862f3bd9a4a92889e3cdf341642e1cd9f0bbdc2b45b3b2b726f",
    "6f306240540a22b20a51eb4d7dcfadb4dfdef610a48399ce367154ba21f71163",
    "84c57d9d581fe383cdae3acab4d0b7dff22f566fc5c637a760f1cdd4749f05a2",
    "00dc04376c3eadb0d03e424497f6c6537b781ded6221ce5e0b3aca451623e5e1",
    "b6f8f9bf11dd18bb40dd1c2ca8bbadb52932a75961baf1de17534b54495cff69",
    "a21f761937deddc37b066291c0e08462c9e8e6c35d6c1ce1161b4ade99f83056",
];

const RESULTS: [&str; 5] = [
    "2fd5b7e4d6ead57d6c343cf1cd99d57451a9b6082de47b6a1cee4cf7b8cc9b37",
    "7ef9ecc01a70222bea9417e190192ff39de3aa2aace8099ae4f974f6c9fcdfaf",
    "044a718f03af4b5e674501775cb403596dd412f2f68dc69c7ceceed456820681",
    "7643f019b26b9c3dbc938b3f0fd4f5555cb2e0b384eba34feab215cedb39c38f",
    "10939a5ad611aa6bb8e6fe6acad95952a3f9c99f67ed44bcc24f1596448f6ba2",
];

const CONTENT_KEYS: [&str; 3] = [
    "357d812e9ffc0f0d70d898e31e05718d3d1a6cc802b3068aa7ad487669e9b6fc",
    "c12e19f02be0acdd1560477ff970988bdbd66288058a3747a266ad30f75adc94",
    "dddcd2eba1f7915bdd4e3bb4d1f7c76ee472dd7d03203426969fa33a5dcbdec5",
];
