//! Tests of the words of hints.

use rbuild_testkit::{assert_recorded, variants};

use super::*;

/// Compares the words of the remedies of one area with the recorded ones. All are one imperative of
/// limited length.
macro_rules! assert_words {
    ($area:ident { $($variant:ident),* $(,)? }, $remedies:expr $(,)?) => {
        let remedies: Vec<$area> = $remedies.into();
        for remedy in &remedies {
            let words = words(&remedy.clone().into());
            assert!(words.starts_with(|c: char| c.is_lowercase()), "{words}");
            assert!(!words.ends_with('.') && !words.contains('\n') && words.len() < 200, "{words}");
        }
        let table = variants!($area { $($variant),* }).words(&remedies, |remedy| words(&remedy.clone().into()));
        assert_recorded!(concat!("hints-", stringify!($area)), table);
    };
}

#[test]
fn hints_about_files_are_as_recorded() {
    assert_words!(
        FileRemedy {
            RemoveLinkLoop,
            ShortenName,
            RenameOrRemove,
            RenameWhiteout,
            Permit,
            PermitProgram,
            CheckPermissions,
            WritableFileSystem,
            Correct,
            AwaitLock,
            OtherDirectory,
            CreateDirectory,
            PassDirectory,
            OtherDestination,
            EndWithSlash,
            PatternPerLine,
            RemovePattern,
            CopyInto,
            CorrectLink,
            AwaitWriters
        },
        [
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
            FileRemedy::OtherDestination,
            FileRemedy::EndWithSlash,
            FileRemedy::PatternPerLine,
            FileRemedy::RemovePattern,
            FileRemedy::CopyInto { root: "the build context".into() },
            FileRemedy::CorrectLink,
            FileRemedy::AwaitWriters
        ]
    );
}

#[test]
fn hints_about_mounts_are_as_recorded() {
    assert_words!(
        MountRemedy { OwnTarget, RemoveFile, ReplaceLink, MountDirectory },
        [MountRemedy::OwnTarget, MountRemedy::RemoveFile, MountRemedy::ReplaceLink, MountRemedy::MountDirectory]
    );
}

#[test]
fn hints_about_the_machine_are_as_recorded() {
    let grant = |uids, gids| SubIdGrant { user: "web".into(), uids, gids };
    let range = Some(IdRangeToGrant::Free(100000, 165535));
    assert_words!(
        MachineRemedy {
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
            UpgradeKernel,
            OrSingleId,
            OrOtherNetwork
        },
        [
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
            MachineRemedy::UpgradeKernel,
            MachineRemedy::OrSingleId(SubIdObstacle::NoNewPrivileges),
            MachineRemedy::OrSingleId(SubIdObstacle::NoSetUid),
            MachineRemedy::OrOtherNetwork(NetworkObstacle::NoCarrier),
            MachineRemedy::OrOtherNetwork(NetworkObstacle::NoTun),
            MachineRemedy::OrOtherNetwork(NetworkObstacle::DeniedTun)
        ]
    );
}

#[test]
fn hints_about_servers_are_as_recorded() {
    assert_words!(
        ServerRemedy {
            TryAgain,
            AwaitRegistry,
            AwaitServer,
            CheckTag,
            CreateRepository,
            PushAgain,
            PushToTag,
            CheckRegistry,
            CheckAddress,
            CheckPassword,
            CheckLogin,
            TrustAuthority,
            RemoveRule,
            ConvertImage,
            InstallHelper,
            CheckHelper,
            RemoveLogin,
            SetHome,
            CorrectRegistries,
            CorrectProxy,
            UseHost
        },
        [
            ServerRemedy::TryAgain,
            ServerRemedy::AwaitRegistry,
            ServerRemedy::AwaitServer,
            ServerRemedy::CheckTag,
            ServerRemedy::CreateRepository,
            ServerRemedy::PushAgain,
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
            ServerRemedy::UseHost
        ]
    );
}

#[test]
fn hints_about_images_are_as_recorded() {
    assert_words!(
        ImageRemedy {
            LongerPrefix,
            UseDigest,
            CheckSource,
            ConvertLayers,
            OtherLayout,
            PassTar,
            AwaitBuilds,
            RelaxAccessTimes
        },
        [
            ImageRemedy::LongerPrefix,
            ImageRemedy::UseDigest,
            ImageRemedy::CheckSource,
            ImageRemedy::ConvertLayers,
            ImageRemedy::OtherLayout,
            ImageRemedy::PassTar,
            ImageRemedy::AwaitBuilds,
            ImageRemedy::RelaxAccessTimes
        ]
    );
}

#[test]
fn hints_about_commands_are_as_recorded() {
    assert_words!(
        CommandRemedy {
            ValidAccountId,
            AddAccount,
            OtherAccount,
            CorrectJson,
            MakeExecutable,
            InstallProgram,
            CheckMemoryOfCode,
            FindSignal,
            PassStageNumber,
            AddKeyToAgent
        },
        [
            CommandRemedy::ValidAccountId,
            CommandRemedy::AddAccount,
            CommandRemedy::OtherAccount,
            CommandRemedy::CorrectJson { mistake: "JSON strings require double quotes".into() },
            CommandRemedy::MakeExecutable,
            CommandRemedy::InstallProgram,
            CommandRemedy::CheckMemoryOfCode,
            CommandRemedy::FindSignal { code: 139 },
            CommandRemedy::PassStageNumber,
            CommandRemedy::AddKeyToAgent
        ]
    );
}

/// The remedies of an area of their own have tests of their own; one of each stands for them here.
#[test]
fn other_hints_are_as_recorded() {
    let mut remedies: Vec<Remedy> = vec![
        Remedy::PassMissing { secrets: vec!["token".into()], agents: vec!["default".into()] },
        Remedy::did_you_mean("alpine"),
        Remedy::UseOneOf { words: vec!["a".into(), "b".into()] },
        Remedy::TimeOfCommit,
        Remedy::FreeSpace,
        Remedy::FreeSpaceAt { place: "/mnt".into() },
        Remedy::FreeOutput,
        Remedy::OtherStore,
        Remedy::OwnStore,
        Remedy::NewerProgram,
        Remedy::RemoveFormat { file: "/s/format.json".into() },
        Remedy::RestoreStore,
        Remedy::ReplaceImage,
        Remedy::RepairStore,
        Remedy::EndLockHolder { lock: "lock".into() },
        Remedy::ObtainImage { name: "alpine".into() },
        Remedy::WriteWholeId { id: "sha256:0".into() },
        Remedy::CorrectPath { root: "the build context".into() },
        Remedy::OtherOutput { obstacle: "device" },
        Remedy::OtherTarget,
        Remedy::ListImages,
        Remedy::ListFiles,
        Remedy::FreeImage { container: "web".into() },
        Remedy::UntagEach,
        Remedy::RemoveContainer { name: "web".into() },
        Remedy::GiveCommand,
        Remedy::LoadArchive,
        Remedy::ImportFiles,
        Remedy::TransferAgain,
        Remedy::LoadBase,
        Remedy::SelectPlatform { platform: "linux/arm64".into() },
        Remedy::GrantIds { file: "/etc/subuid".into() },
        Remedy::LowerId { most: 7 },
        Remedy::RaiseSessionLimit { limit: SessionLimit::Files },
        Remedy::RaiseSessionLimit { limit: SessionLimit::Processes },
        Remedy::CheckMemory,
        Remedy::CheckNetwork,
        Remedy::RaiseLimit { name: "ratio".into() },
        Remedy::InspectFailure,
        Remedy::RaiseUlimits { limits: "data=0".into() },
        Remedy::SetArgument,
        Remedy::Allow { entitlement: "network.host" },
        Remedy::KeepSecretOut,
        Remedy::PassSecret { id: "token".into() },
        Remedy::PassAgent { id: "default".into() },
        Remedy::PassContext,
        Remedy::UseStoredImage { first: None },
        Remedy::UseStoredImage { first: Some("check the network".into()) },
        Remedy::OmitNetwork,
        Remedy::ReadOnlyVolume,
        Remedy::PermitNamespaces { setting: "user.max_user_namespaces=15000" },
        Remedy::UnmaskProc,
        Remedy::UnconfineSeccomp,
        Remedy::FindDenial,
        Remedy::CheckSubIds,
        Remedy::MountProc,
        FileRemedy::ShortenName.into(),
        MountRemedy::OwnTarget.into(),
        MachineRemedy::UpgradeKernel.into(),
        ServerRemedy::TryAgain.into(),
        ImageRemedy::UseDigest.into(),
        CommandRemedy::AddAccount.into(),
    ];
    let registry = |action| Remedy::Registry { registry: "a.io".into(), action };
    remedies.extend(RegistryAction::ALL.map(registry));
    assert_words!(
        Remedy {
            PassMissing,
            DidYouMean,
            UseOneOf,
            TimeOfCommit,
            FreeSpace,
            FreeSpaceAt,
            FreeOutput,
            OtherStore,
            OwnStore,
            NewerProgram,
            RemoveFormat,
            RestoreStore,
            ReplaceImage,
            RepairStore,
            EndLockHolder,
            ObtainImage,
            WriteWholeId,
            CorrectPath,
            OtherOutput,
            OtherTarget,
            ListImages,
            ListFiles,
            FreeImage,
            UntagEach,
            RemoveContainer,
            GiveCommand,
            LoadArchive,
            ImportFiles,
            TransferAgain,
            LoadBase,
            SelectPlatform,
            GrantIds,
            LowerId,
            RaiseSessionLimit,
            CheckMemory,
            CheckNetwork,
            RaiseLimit,
            InspectFailure,
            RaiseUlimits,
            SetArgument,
            Allow,
            KeepSecretOut,
            PassSecret,
            PassAgent,
            PassContext,
            UseStoredImage,
            OmitNetwork,
            ReadOnlyVolume,
            PermitNamespaces,
            UnmaskProc,
            UnconfineSeccomp,
            FindDenial,
            CheckSubIds,
            MountProc,
            Registry,
            File,
            Mount,
            Machine,
            Server,
            Image,
            Command
        },
        remedies
    );
}

#[test]
fn a_grant_of_sub_ids_is_a_command() {
    let grant = |uids, gids| granting(&SubIdGrant { user: "web".into(), uids, gids });
    let range = Some(IdRangeToGrant::Free(100000, 165535));
    assert_eq!(grant(range, range), "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 web");
    assert_eq!(grant(None, Some(IdRangeToGrant::Unknown)), "sudo usermod --add-subgids FIRST-LAST web");
}
