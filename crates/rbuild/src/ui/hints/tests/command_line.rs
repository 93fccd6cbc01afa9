//! Words of the hints of the command line itself.

use rbuild_testkit::{assert_recorded, variants};

use super::super::*;

#[test]
fn hints_about_command_lines_are_as_recorded() {
    assert_words!(
        UsageRemedy {
            ListCommands,
            ShowOptions,
            UseForm,
            PutFirst,
            PutFlagsFirst,
            AttachValue,
            UseWordOfGroup,
            PassArchive,
            PassDockerfile,
            CheckStorePath,
            GiveStorePath
        },
        [
            UsageRemedy::ListCommands,
            UsageRemedy::ShowOptions { command: "rbuild build".into() },
            UsageRemedy::UseForm { form: "rbuild tag IMAGE NAME".into() },
            UsageRemedy::PutFirst { verb: "images".into() },
            UsageRemedy::PutFlagsFirst,
            UsageRemedy::AttachValue { flag: "--pull".into(), value: "never".into() },
            UsageRemedy::UseWordOfGroup { group: "image".into(), words: vec!["ls".into(), "rm".into()] },
            UsageRemedy::PassArchive { file: "x.tar".into() },
            UsageRemedy::PassDockerfile,
            UsageRemedy::CheckStorePath,
            UsageRemedy::GiveStorePath
        ]
    );
}

fn value_remedies() -> Vec<ValueRemedy> {
    vec![
        ValueRemedy::PlatformForm,
        ValueRemedy::PlatformsForm,
        ValueRemedy::HostForm,
        ValueRemedy::UlimitForm,
        ValueRemedy::NumberOrUnlimited,
        ValueRemedy::SwapLimits { resource: "nofile".into(), soft: "9".into(), hard: "3".into() },
        ValueRemedy::RaiseHardLimit,
        ValueRemedy::VolumeForm,
        ValueRemedy::CreateSource,
        ValueRemedy::PassDirectory { name: "data".into() },
        ValueRemedy::BindDirectory,
        ValueRemedy::MountForm,
        ValueRemedy::AnnotationForm,
        ValueRemedy::OmitType,
        ValueRemedy::ManifestOrOmitType,
        ValueRemedy::SecretForm,
        ValueRemedy::AddSecretId,
        ValueRemedy::PermitSecretFile,
        ValueRemedy::PassFile,
        ValueRemedy::CreateSecretFile,
        ValueRemedy::StartAgent,
        ValueRemedy::SeparateSockets,
        ValueRemedy::PullAlways,
        ValueRemedy::SizeForm,
        ValueRemedy::CacheSourceForm,
        ValueRemedy::CacheTargetForm,
        ValueRemedy::SecondsForm,
        ValueRemedy::AtLeastOne,
        ValueRemedy::LimitForm,
        ValueRemedy::LimitPair { name: "bytes" },
        ValueRemedy::LimitPair { name: "entries" },
        ValueRemedy::QuoteString,
        ValueRemedy::UnquoteNumber,
        ValueRemedy::CorrectLine { line: 3 },
        ValueRemedy::BracketList,
        ValueRemedy::AbsolutePath,
        ValueRemedy::DigestForm,
        ValueRemedy::PairForm { flag: "--label".into() },
        ValueRemedy::PassPair { flag: "--label".into(), context: "app".into() },
        ValueRemedy::OmitInScripts,
        ValueRemedy::PermitDelete,
        ValueRemedy::LoginFile,
        ValueRemedy::OmitTag,
        ValueRemedy::CertificateDirectory,
        ValueRemedy::LogInToEach,
    ]
}

#[test]
fn hints_about_values_are_as_recorded() {
    assert_words!(
        ValueRemedy {
            PlatformForm,
            PlatformsForm,
            HostForm,
            UlimitForm,
            NumberOrUnlimited,
            SwapLimits,
            RaiseHardLimit,
            VolumeForm,
            CreateSource,
            PassDirectory,
            BindDirectory,
            MountForm,
            AnnotationForm,
            OmitType,
            ManifestOrOmitType,
            SecretForm,
            AddSecretId,
            PermitSecretFile,
            PassFile,
            CreateSecretFile,
            StartAgent,
            SeparateSockets,
            PullAlways,
            SizeForm,
            CacheSourceForm,
            CacheTargetForm,
            SecondsForm,
            AtLeastOne,
            LimitForm,
            LimitPair,
            QuoteString,
            UnquoteNumber,
            CorrectLine,
            BracketList,
            AbsolutePath,
            DigestForm,
            PairForm,
            PassPair,
            OmitInScripts,
            PermitDelete,
            LoginFile,
            OmitTag,
            CertificateDirectory,
            LogInToEach
        },
        value_remedies()
    );
}

#[test]
fn hints_about_inputs_are_as_recorded() {
    assert_words!(
        InputRemedy {
            PassOneAsPath,
            PassBothAsPaths,
            PassParent,
            PassContext,
            OmitFileOrPassUrl,
            OmitFileOrPipe,
            OmitFile,
            PathFromHere,
            PassDockerfile,
            NamedContextForm,
            PassDirectoryOrImage,
            CorrectPath,
            BuildTarget,
            DownloadDirectory,
            CloneRepository,
            DownloadInput,
            DownloadFile,
            CopyIntoContext,
            RegularFile,
            PipeDockerfile,
            PipeContext,
            PipeArchive
        },
        [
            InputRemedy::PassOneAsPath,
            InputRemedy::PassBothAsPaths,
            InputRemedy::PassParent,
            InputRemedy::PassContext,
            InputRemedy::OmitFileOrPassUrl,
            InputRemedy::OmitFileOrPipe,
            InputRemedy::OmitFile,
            InputRemedy::PathFromHere { path: "app/Dockerfile".into() },
            InputRemedy::PassDockerfile,
            InputRemedy::NamedContextForm,
            InputRemedy::PassDirectoryOrImage { name: "base".into(), image: "alpine".into() },
            InputRemedy::CorrectPath,
            InputRemedy::BuildTarget,
            InputRemedy::DownloadDirectory,
            InputRemedy::CloneRepository,
            InputRemedy::DownloadInput,
            InputRemedy::DownloadFile,
            InputRemedy::CopyIntoContext,
            InputRemedy::RegularFile,
            InputRemedy::PipeDockerfile,
            InputRemedy::PipeContext,
            InputRemedy::PipeArchive
        ]
    );
}

#[test]
fn hints_about_outputs_are_as_recorded() {
    assert_words!(
        OutputRemedy {
            AddType,
            OutputForm,
            LevelRange,
            NumericLevel,
            NameImage,
            AddName,
            AddDirectory,
            AddDestination,
            WriteTar,
            LeaveTerminal,
            CreateParent,
            CreateFirst,
            PassFile,
            PassDirectory,
            OtherPath,
            WritablePath,
            OpenForWriting,
            ReplaceSocket,
            RemoveLinkLoop
        },
        [
            OutputRemedy::AddType,
            OutputRemedy::OutputForm,
            OutputRemedy::LevelRange { form: "zstd", most: 22 },
            OutputRemedy::NumericLevel,
            OutputRemedy::NameImage,
            OutputRemedy::AddName,
            OutputRemedy::AddDirectory,
            OutputRemedy::AddDestination,
            OutputRemedy::WriteTar,
            OutputRemedy::LeaveTerminal,
            OutputRemedy::CreateParent,
            OutputRemedy::CreateFirst,
            OutputRemedy::PassFile,
            OutputRemedy::PassDirectory,
            OutputRemedy::OtherPath,
            OutputRemedy::WritablePath,
            OutputRemedy::OpenForWriting,
            OutputRemedy::ReplaceSocket,
            OutputRemedy::RemoveLinkLoop
        ]
    );
}

#[test]
fn hints_about_single_commands_are_as_recorded() {
    assert_words!(
        VerbRemedy {
            UseCopy,
            WritePath,
            ListRules,
            ExplainRule,
            CheckDirective,
            CloseBracket,
            ListFields,
            RemoveLogin,
            PassUser,
            PassPassword,
            HidePassword,
            ConfigureHelper,
            ListBuilds,
            ListContainers,
            ListImages,
            ShowSizes,
            ListOrPull,
            PullFirst,
            OmitTerminal,
            UntilFilter,
            DurationForm,
            RepairStore,
            ObtainAgain,
            AnswerYes,
            RunAgain,
            ClampTimes,
            BeDeterministic
        },
        [
            VerbRemedy::UseCopy,
            VerbRemedy::WritePath { image: "alpine".into(), path: "etc/passwd".into() },
            VerbRemedy::ListRules,
            VerbRemedy::ExplainRule { rule: "StageNameCasing" },
            VerbRemedy::CheckDirective,
            VerbRemedy::CloseBracket,
            VerbRemedy::ListFields,
            VerbRemedy::RemoveLogin,
            VerbRemedy::PassUser,
            VerbRemedy::PassPassword,
            VerbRemedy::HidePassword,
            VerbRemedy::ConfigureHelper,
            VerbRemedy::ListBuilds,
            VerbRemedy::ListContainers,
            VerbRemedy::ListImages,
            VerbRemedy::ShowSizes,
            VerbRemedy::ListOrPull { image: "alpine".into() },
            VerbRemedy::PullFirst { image: "alpine".into() },
            VerbRemedy::OmitTerminal,
            VerbRemedy::UntilFilter,
            VerbRemedy::DurationForm,
            VerbRemedy::RepairStore,
            VerbRemedy::ObtainAgain,
            VerbRemedy::AnswerYes,
            VerbRemedy::RunAgain,
            VerbRemedy::ClampTimes,
            VerbRemedy::BeDeterministic
        ]
    );
}
