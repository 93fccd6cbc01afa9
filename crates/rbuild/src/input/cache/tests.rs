use std::sync::Arc;

use rbuild_engine::CacheMode;
use rbuild_layer::LayerForm;
use rbuild_transport::{CacheLimits, SharedCache};

use crate::input::cache::fields::{SHARDS, TAG};
use crate::input::cache::{CachePlace, CacheReader, insecure_registries, sources, targets};

#[test]
fn records_in_an_image_have_no_place() {
    let [target] = &targets(&["type=inline".into()]).unwrap()[..] else { panic!() };
    assert!(matches!(target.to, CachePlace::Image));
    assert!(targets(&["type=inline,ref=a.io/b".into()]).is_err());
    let reader = CacheReader {
        records: &|_, _| panic!("no registry is asked"),
        layers: &|| Arc::new(|_, _| None),
        note: &|_| (),
    };
    assert!(sources(&["type=inline,ref=a.io/b".into()], reader).is_err());
}

#[test]
fn values_are_parsed_as_in_buildkit() {
    let place = rbuild_testkit::Scratch::new();
    let dest = place.join("a/b");
    let text = format!(
        "type=local,dest={},mode=max,compression=zstd,compression-level=5,ignore-error=true,max-size=1g,max-age=2d",
        dest.display()
    );
    let [target] = &targets(&[text, "type=gha".into()]).unwrap()[..] else { panic!() };
    assert_eq!((target.export.form.name().as_str(), target.export.mode), ("zstd-5", CacheMode::Max));
    let CachePlace::Directory(to) = &target.to else { panic!() };
    assert_eq!((to.tag.as_str(), target.ignores_errors), (TAG, true));
    assert_eq!(target.limits.age, 172_800);
    let text = format!("\"type=local\",DEST={},tag=main", dest.display());
    let [target] = &targets(&[text]).unwrap()[..] else { panic!() };
    assert_eq!((target.export.form, target.export.mode), (LayerForm::default(), CacheMode::Min));
    let CachePlace::Directory(to) = &target.to else { panic!() };
    assert_eq!((to.tag.as_str(), target.limits), ("main", CacheLimits::default()));
    for text in ["a.io/b", "type=registry,ref=a.io/b", "ref=a.io/b:latest,type=registry,oci-mediatypes=true"] {
        let [target] = &targets(&[text.to_string()]).unwrap()[..] else { panic!() };
        let CachePlace::Shared(SharedCache::Registry(cache)) = &target.to else { panic!() };
        assert_eq!((cache.name().familiar().as_str(), cache.shards()), ("a.io/b:latest", SHARDS), "{text}");
    }
    for (text, want) in [
        ("scope=feature/a", "a.io/b:cache-feature-a-"),
        ("scope=main,shards=2", "a.io/b:cache-main"),
        ("ref=a.io/b:x,scope=main", "a.io/b:x-main"),
        ("ref=a.io/b:latest,scope=main", "a.io/b:latest-main"),
    ] {
        let [target] = &targets(&[format!("type=registry,ref=a.io/b,{text}")]).unwrap()[..] else { panic!() };
        let CachePlace::Shared(SharedCache::Registry(cache)) = &target.to else { panic!() };
        assert!(cache.name().familiar().starts_with(want), "{text}");
    }
    for text in ["scope=a;b", "scope=", "scope=;a", "scope=a; ", "shards=0", "shards=65", "shards=x"] {
        assert!(targets(&[format!("type=registry,ref=a.io/b,{text}")]).is_err(), "{text}");
    }
    let text = format!("type=local,dest={},scope=main", dest.display());
    let [target] = &targets(&[text]).unwrap()[..] else { panic!() };
    assert!(matches!(&target.to, CachePlace::Directory(to) if to.tag == "cache-main"));
    let digest = format!("type=registry,ref=a.io/b:x@{}", rbuild_image::BlobDigest::of(b"x"));
    assert!(targets(&[digest]).is_err());
    assert!(!dest.exists(), "nothing is created before the build");
    let src = format!("type=local,src={}", dest.display());
    let notes = std::cell::RefCell::new(String::new());
    let reader = CacheReader {
        records: &|_, _| panic!("no registry is asked"),
        layers: &|| Arc::new(|_, _| None),
        note: &|text| notes.borrow_mut().push_str(text),
    };
    assert!(sources(std::slice::from_ref(&src), reader).unwrap().is_empty());
    assert_eq!(notes.take(), format!("--cache-from {src}: there is no cache `latest` yet"));
    assert!(sources(&[format!("{src},required")], reader).is_err());
}

#[test]
fn no_key_is_shown() {
    let key = "-----BEGIN OPENSSH PRIVATE KEY-----\nabcdefg\n-----END OPENSSH PRIVATE KEY-----\n";
    let one_line = "abcdefg=".repeat(40);
    for (option, value) in [("sign", key), ("sign", &one_line), ("sign", "ssh\nabcdefg"), ("verify", key)] {
        let target = targets(&[format!("type=registry,ref=a.io/b,{option}={value},mode=max")]).map(drop).unwrap_err();
        let want =
            format!("--cache-to type=registry,ref=a.io/b,{option}=***,mode=max: `{option}` takes the name of a file");
        assert!(target.message.starts_with(&want), "{}", target.message);
    }
}

#[test]
fn mistakes_are_named() {
    for (text, want) in [
        ("type=local,src=x", "`src` is an option of --cache-from"),
        ("type=local,dest=x,required", "`required` is an option of --cache-from"),
        ("type=local,dest=x,mode=maxx", "unknown mode `maxx`"),
        ("type=local,dest=x,ignore-error=x", "`ignore-error=x`: "),
        ("ref=a.io/b,mode=max", "the type is missing"),
        ("type=local,dest=x,ref=a.io/b", "`ref` is an option of type=registry"),
        ("type=s3,bucket=b,shards=2", "`shards` is an option of type=registry"),
        ("type=gha,dest=x", "`dest` is an option of type=local"),
        ("type=inline,ref=a.io/b", "`ref` is an option of type=registry"),
        ("type=s3,bucket=b,endpoint_url=minio:9000", "`endpoint_url=minio:9000`: not a URL"),
        ("type=azblob,account_url=a.net", "`account_url=a.net`: not a URL"),
    ] {
        let failure = targets(&[text.to_string()]).map(drop).unwrap_err();
        assert!(failure.message.contains(want), "{}", failure.message);
    }
}

#[test]
fn insecure_registries_are_those_of_caches() {
    let given = |text: &str| vec![text.to_string()];
    let from = given("type=registry,ref=a.io:5000/b,registry.insecure=true,scope=a;b");
    let to = given("type=registry,ref=b.io/c,registry.insecure");
    assert_eq!(insecure_registries(&from, &to), ["a.io:5000", "b.io"]);
    for text in
        ["a.io/b", "type=registry,ref=a.io/b,registry.insecure=false", "type=local,src=x", "type=registry", "\""]
    {
        assert!(insecure_registries(&given(text), &[]).is_empty(), "{text}");
    }
}
