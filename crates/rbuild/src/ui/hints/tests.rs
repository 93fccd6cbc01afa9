//! Tests of the words of hints.

use rbuild_remedy::{
    BuildRemedy, CommandRemedy, DiskRemedy, DockerfileRemedy, ExcludingRule, FileAccess, FileRemedy, IdRangeToGrant,
    ImageRemedy, IsolationRemedy, MachineRemedy, MountRemedy, NetworkObstacle, RegistryAction, Remedy, ServerRemedy,
    SessionLimit, StoreRemedy, SubIdGrant, SubIdObstacle,
};
use rbuild_testkit::{assert_recorded, variants};

use super::remedies::granting;
use super::*;

/// Compares the words of the remedies of one area with the recorded ones. All are one imperative of
/// limited length.
macro_rules! assert_words {
    ($area:ident $variants:tt, $remedies:expr $(,)?) => {
        assert_words!($area $variants, $remedies, as $area)
    };
    ($area:ident { $($variant:ident),* $(,)? }, $remedies:expr, as $kind:ty) => {
        let remedies: Vec<$area> = $remedies.into();
        let words = |remedy: &$area| Hint::from(<$kind>::from(remedy.clone())).to_string();
        for remedy in &remedies {
            let words = words(remedy);
            assert!(words.starts_with(|c: char| c.is_lowercase()), "{words}");
            assert!(!words.ends_with('.') && !words.contains('\n') && words.len() < 200, "{words}");
        }
        let table = variants!($area { $($variant),* }).words(&remedies, words);
        assert_recorded!(concat!("hints-", stringify!($area)), table);
    };
}

mod command_line;

#[test]
fn hints_about_files_are_as_recorded() {
    assert_words!(
        FileRemedy {
            CorrectPath, OtherOutput, RemoveLinkLoop, ShortenName, RenameOrRemove, RenameWhiteout, Permit,
            PermitProgram, CheckPermissions, WritableFileSystem, Correct, AwaitLock, OtherDirectory,
            CreateDirectory, PassDirectory, PassSpecialFile, ChooseDestination, EndWithSlash,
            CorrectPattern, RemovePattern, IgnoreStore, MoveStore, PermitOrIgnore, CopyInto, CorrectLink, AwaitWriters
        },
        [
            FileRemedy::CorrectPath { root: "the build context".into() },
            FileRemedy::OtherOutput { obstacle: "device".into() },
            FileRemedy::RemoveLinkLoop,
            FileRemedy::ShortenName,
            FileRemedy::RenameOrRemove,
            FileRemedy::RenameWhiteout,
            FileRemedy::Permit { access: FileAccess::Read, path: "/h/auth.json".into() },
            FileRemedy::Permit { access: FileAccess::Write, path: "/h/auth.json".into() },
            FileRemedy::Permit { access: FileAccess::Lock, path: "/h/auth.json".into() },
            FileRemedy::PermitProgram { program: "docker-credential-x".into() },
            FileRemedy::CheckPermissions,
            FileRemedy::WritableFileSystem,
            FileRemedy::Correct { place: "DOCKER_AUTH_CONFIG".into() },
            FileRemedy::AwaitLock,
            FileRemedy::OtherDirectory,
            FileRemedy::CreateDirectory,
            FileRemedy::PassDirectory,
            FileRemedy::PassSpecialFile,
            FileRemedy::ChooseDestination,
            FileRemedy::EndWithSlash,
            FileRemedy::CorrectPattern,
            FileRemedy::RemovePattern(Box::new(ExcludingRule {
                pattern: "*.pem".into(),
                file: ".dockerignore".into(),
                line: 3
            })),
            FileRemedy::IgnoreStore { path: ".local/share/rbuild".into() },
            FileRemedy::MoveStore,
            FileRemedy::PermitOrIgnore { path: "data/db".into() },
            FileRemedy::CopyInto { root: "the build context".into() },
            FileRemedy::CorrectLink,
            FileRemedy::AwaitWriters
        ],
        as Remedy
    );
}

#[test]
fn hints_about_mounts_are_as_recorded() {
    assert_words!(
        MountRemedy {
            OtherTarget,
            ReadOnlyVolume,
            OwnTarget,
            RemoveFile,
            ReplaceLink,
            MountDirectory,
            OtherCacheDirectory
        },
        [
            MountRemedy::OtherTarget,
            MountRemedy::ReadOnlyVolume,
            MountRemedy::OwnTarget,
            MountRemedy::RemoveFile,
            MountRemedy::ReplaceLink,
            MountRemedy::MountDirectory,
            MountRemedy::OtherCacheDirectory
        ],
        as Remedy
    );
}

#[test]
fn hints_about_the_machine_are_as_recorded() {
    let grant = |uids, gids| SubIdGrant { user: "web".into(), uids, gids };
    let range = Some(IdRangeToGrant::Free(100000, 165535));
    assert_words!(
        MachineRemedy {
            RaiseSessionLimit,
            CheckMemory,
            CreateDevice,
            RaiseQueueLimit,
            LeaveInterceptor,
            OtherMode,
            BecomeRoot,
            GrantCapability,
            BecomeOrdinary,
            GrantSubIds,
            GrantMoreSubIds,
            InstallSubIdHelpers,
            RestoreSetUid,
            PermitClone,
            InstallEmulator,
            BuildOnPlatform,
            UpgradeKernel,
            OrSingleId,
            OrOtherNetwork
        },
        [
            MachineRemedy::RaiseSessionLimit { limit: SessionLimit::Files },
            MachineRemedy::RaiseSessionLimit { limit: SessionLimit::Processes },
            MachineRemedy::CheckMemory,
            MachineRemedy::CreateDevice { name: "null".into(), major: 1, minor: 3 },
            MachineRemedy::RaiseQueueLimit,
            MachineRemedy::LeaveInterceptor,
            MachineRemedy::OtherMode,
            MachineRemedy::BecomeRoot,
            MachineRemedy::GrantCapability,
            MachineRemedy::BecomeOrdinary,
            MachineRemedy::GrantSubIds(grant(None, Some(IdRangeToGrant::Unknown))),
            MachineRemedy::GrantMoreSubIds { count: 65536, grant: grant(range, range) },
            MachineRemedy::InstallSubIdHelpers,
            MachineRemedy::RestoreSetUid { program: "/usr/bin/newuidmap".into() },
            MachineRemedy::PermitClone,
            MachineRemedy::InstallEmulator,
            MachineRemedy::BuildOnPlatform,
            MachineRemedy::UpgradeKernel,
            MachineRemedy::OrSingleId(SubIdObstacle::NoNewPrivileges),
            MachineRemedy::OrSingleId(SubIdObstacle::NoSetUid),
            MachineRemedy::OrOtherNetwork(NetworkObstacle::NoCarrier),
            MachineRemedy::OrOtherNetwork(NetworkObstacle::NoTun),
            MachineRemedy::OrOtherNetwork(NetworkObstacle::DeniedTun)
        ],
        as Remedy
    );
}

#[test]
fn hints_about_servers_are_as_recorded() {
    assert_words!(
        ServerRemedy {
            CheckNetwork, NameRegistry, CheckPort, Registry, TryAgain, AwaitRegistry, AwaitServer, CheckTag,
            CreateRepository, CreateBucket, CheckObjectLogin, PushAgain, UseCacheTag, PushToTag, CheckRegistry,
            CheckAddress, CheckPassword, CheckLogin, TrustAuthority, RemoveRule, ConvertImage, InstallHelper, CheckHelper, RemoveLogin,
            SetHome, CorrectRegistries, CorrectProxy, UseHost, WriteRegistry, LogInOrCorrectName
        },
        [
            ServerRemedy::CheckNetwork,
            ServerRemedy::NameRegistry { name: "app:1".into() },
            ServerRemedy::CheckPort,
            ServerRemedy::LogInOrCorrectName { registry: "a.io".into(), name: "a.io/b:1".into() },
            ServerRemedy::Registry { registry: "a.io".into(), action: RegistryAction::LogIn },
            ServerRemedy::Registry { registry: "a.io".into(), action: RegistryAction::CheckLogin },
            ServerRemedy::Registry { registry: "a.io".into(), action: RegistryAction::RaiseRateLimit },
            ServerRemedy::Registry { registry: "a.io".into(), action: RegistryAction::TrustAuthority },
            ServerRemedy::Registry { registry: "a.io".into(), action: RegistryAction::AllowPlainHttp },
            ServerRemedy::TryAgain,
            ServerRemedy::AwaitRegistry,
            ServerRemedy::AwaitServer,
            ServerRemedy::CheckTag,
            ServerRemedy::CreateRepository,
            ServerRemedy::CreateBucket,
            ServerRemedy::CheckObjectLogin,
            ServerRemedy::PushAgain,
            ServerRemedy::UseCacheTag,
            ServerRemedy::PushToTag,
            ServerRemedy::CheckRegistry,
            ServerRemedy::CheckAddress,
            ServerRemedy::CheckPassword,
            ServerRemedy::CheckLogin,
            ServerRemedy::TrustAuthority { host: "a.io".into() },
            ServerRemedy::RemoveRule { file: "`/etc/r.conf`".into() },
            ServerRemedy::ConvertImage,
            ServerRemedy::InstallHelper,
            ServerRemedy::CheckHelper,
            ServerRemedy::RemoveLogin { place: "DOCKER_AUTH_CONFIG".into() },
            ServerRemedy::SetHome,
            ServerRemedy::CorrectRegistries,
            ServerRemedy::CorrectProxy,
            ServerRemedy::UseHost,
            ServerRemedy::WriteRegistry { example: "docker.io/x".into() }
        ],
        as Remedy
    );
}

#[test]
fn hints_about_images_are_as_recorded() {
    assert_words!(
        ImageRemedy {
            ReplaceImage,
            ObtainImage,
            WriteWholeId,
            ListImages,
            ListFiles,
            FreeImage,
            UntagEach,
            RemoveContainer,
            LoadArchive,
            ImportFiles,
            PassArchive,
            TransferAgain,
            LoadBase,
            SelectPlatform,
            RaiseLimit,
            UseStoredImage,
            CorrectName,
            LongerPrefix,
            UseDigest,
            CheckSource,
            ConvertLayers,
            OtherLayout,
            PassTar
        },
        [
            ImageRemedy::ReplaceImage,
            ImageRemedy::ObtainImage { name: "alpine".into() },
            ImageRemedy::WriteWholeId { id: "sha256:0".into() },
            ImageRemedy::ListImages,
            ImageRemedy::ListFiles,
            ImageRemedy::FreeImage { container: "web".into() },
            ImageRemedy::UntagEach,
            ImageRemedy::RemoveContainer { name: "web".into() },
            ImageRemedy::LoadArchive,
            ImageRemedy::ImportFiles,
            ImageRemedy::PassArchive,
            ImageRemedy::TransferAgain,
            ImageRemedy::LoadBase,
            ImageRemedy::SelectPlatform { platform: "linux/arm64".into() },
            ImageRemedy::RaiseLimit { name: "ratio".into() },
            ImageRemedy::UseStoredImage { first: None },
            ImageRemedy::UseStoredImage { first: Some(Box::new(ServerRemedy::CheckNetwork.into())) },
            ImageRemedy::CorrectName,
            ImageRemedy::LongerPrefix,
            ImageRemedy::UseDigest,
            ImageRemedy::CheckSource,
            ImageRemedy::ConvertLayers,
            ImageRemedy::OtherLayout,
            ImageRemedy::PassTar,
        ],
        as Remedy
    );
}

#[test]
fn hints_about_commands_are_as_recorded() {
    assert_words!(
        CommandRemedy {
            InspectFailure,
            RaiseUlimits,
            ValidAccountId,
            AddAccount,
            OtherAccount,
            CorrectJson,
            MakeExecutable,
            InstallProgram,
            UseImageWithShell,
            ProvideProgram,
            OtherProgram,
            CheckMemoryOfCode,
            FindSignal,
            PassStageNumber,
            AddKeyToAgent,
            ConvertKey
        },
        [
            CommandRemedy::InspectFailure,
            CommandRemedy::RaiseUlimits { limits: "data=0".into() },
            CommandRemedy::ValidAccountId,
            CommandRemedy::AddAccount,
            CommandRemedy::OtherAccount,
            CommandRemedy::CorrectJson { mistake: "JSON strings require double quotes".into() },
            CommandRemedy::MakeExecutable,
            CommandRemedy::InstallProgram,
            CommandRemedy::UseImageWithShell,
            CommandRemedy::ProvideProgram,
            CommandRemedy::OtherProgram,
            CommandRemedy::CheckMemoryOfCode,
            CommandRemedy::FindSignal { code: 139 },
            CommandRemedy::PassStageNumber,
            CommandRemedy::AddKeyToAgent,
            CommandRemedy::ConvertKey
        ],
        as Remedy
    );
}

#[test]
fn hints_about_dockerfiles_are_as_recorded() {
    assert_words!(
        DockerfileRemedy {
            MoveStage,
            MoveOrRenameStage,
            RemoveDevice,
            RemoveSyntax,
            WriteFlag,
            UseAdd,
            UseJsonForm,
            SeparateItems,
            EscapeBracket,
            NameLinkTarget
        },
        [
            DockerfileRemedy::MoveStage,
            DockerfileRemedy::MoveOrRenameStage,
            DockerfileRemedy::RemoveDevice,
            DockerfileRemedy::RemoveSyntax,
            DockerfileRemedy::WriteFlag,
            DockerfileRemedy::UseAdd,
            DockerfileRemedy::UseJsonForm { name: "a b".into() },
            DockerfileRemedy::SeparateItems,
            DockerfileRemedy::EscapeBracket,
            DockerfileRemedy::NameLinkTarget
        ],
        as Remedy
    );
}

#[test]
fn hints_about_disks_are_as_recorded() {
    assert_words!(
        DiskRemedy { FreeSpace, FreeStore, FreeSpaceAt, FreeOutput },
        [
            DiskRemedy::FreeSpace,
            DiskRemedy::FreeStore,
            DiskRemedy::FreeSpaceAt { place: "/mnt".into() },
            DiskRemedy::FreeOutput
        ],
        as Remedy
    );
}

#[test]
fn hints_about_isolation_are_as_recorded() {
    assert_words!(
        IsolationRemedy {
            GrantIds,
            LowerId,
            OmitNetwork,
            PermitNamespaces,
            UnmaskProc,
            UnconfineSeccomp,
            FindDenial,
            CheckSubIds,
            MountProc
        },
        [
            IsolationRemedy::GrantIds { file: "/etc/subuid".into() },
            IsolationRemedy::LowerId { most: 7 },
            IsolationRemedy::OmitNetwork,
            IsolationRemedy::PermitNamespaces { setting: "user.max_user_namespaces=15000".into() },
            IsolationRemedy::UnmaskProc,
            IsolationRemedy::UnconfineSeccomp,
            IsolationRemedy::FindDenial,
            IsolationRemedy::CheckSubIds,
            IsolationRemedy::MountProc
        ],
        as Remedy
    );
}

#[test]
fn hints_about_the_store_are_as_recorded() {
    assert_words!(
        StoreRemedy {
            OtherStore,
            EmptyDirectory,
            LoadLayout,
            BecomeOwner,
            OwnStore,
            NewerProgram,
            RemoveFormat,
            RestoreStore,
            RepairStore,
            EndLockHolder,
            AwaitBuilds,
            RelaxAccessTimes,
            ListVolumes,
            RemoveUsers,
            UseIsolation
        },
        [
            StoreRemedy::OtherStore,
            StoreRemedy::EmptyDirectory,
            StoreRemedy::LoadLayout { dir: "/s/my layout".into() },
            StoreRemedy::BecomeOwner { user: "ada".into() },
            StoreRemedy::OwnStore,
            StoreRemedy::NewerProgram,
            StoreRemedy::RemoveFormat { file: "/s/format.json".into() },
            StoreRemedy::RestoreStore,
            StoreRemedy::RepairStore,
            StoreRemedy::EndLockHolder { lock: "lock".into() },
            StoreRemedy::AwaitBuilds,
            StoreRemedy::RelaxAccessTimes,
            StoreRemedy::ListVolumes,
            StoreRemedy::RemoveUsers,
            StoreRemedy::UseIsolation { mode: "userns".into() }
        ],
        as Remedy
    );
}

#[test]
fn hints_about_a_build_are_as_recorded() {
    assert_words!(
        BuildRemedy {
            PassMissing,
            TimeOfCommit,
            GiveCommand,
            SetArgument,
            DeclareArgument,
            Allow,
            KeepSecretOut,
            IgnoreSecretFile,
            PassSecret,
            PassAgent,
            PassContext
        },
        [
            BuildRemedy::PassMissing { secrets: vec!["token".into()], agents: vec!["default".into()] },
            BuildRemedy::TimeOfCommit,
            BuildRemedy::GiveCommand,
            BuildRemedy::SetArgument,
            BuildRemedy::DeclareArgument { name: "BASE".into() },
            BuildRemedy::Allow { entitlement: "network.host".into() },
            BuildRemedy::KeepSecretOut,
            BuildRemedy::IgnoreSecretFile,
            BuildRemedy::PassSecret { id: "token".into() },
            BuildRemedy::PassAgent { id: "default".into() },
            BuildRemedy::PassContext
        ],
        as Remedy
    );
}

/// The remedies of an area have tests of their own; one of each stands for them here.
#[test]
fn other_hints_are_as_recorded() {
    assert_words!(
        Remedy {
            DidYouMean, UseOneOf, File, Mount, Machine, Server, Image, Command, Disk, Isolation, Store, Build,
            Dockerfile
        },
        [
            Remedy::did_you_mean("alpine"),
            Remedy::UseOneOf { words: vec!["a".into()] },
            Remedy::UseOneOf { words: vec!["a".into(), "b".into()] },
            FileRemedy::ShortenName.into(),
            MountRemedy::OwnTarget.into(),
            MachineRemedy::UpgradeKernel.into(),
            ServerRemedy::TryAgain.into(),
            ImageRemedy::UseDigest.into(),
            CommandRemedy::AddAccount.into(),
            DiskRemedy::FreeSpace.into(),
            IsolationRemedy::MountProc.into(),
            StoreRemedy::OtherStore.into(),
            BuildRemedy::SetArgument.into(),
            DockerfileRemedy::MoveStage.into()
        ],
        as Remedy
    );
}

#[test]
fn a_grant_of_sub_ids_is_a_command() {
    let grant = |uids, gids| granting(&SubIdGrant { user: "web".into(), uids, gids });
    let range = Some(IdRangeToGrant::Free(100000, 165535));
    assert_eq!(grant(range, range), "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 web");
    assert_eq!(grant(None, Some(IdRangeToGrant::Unknown)), "sudo usermod --add-subgids FIRST-LAST web");
}
