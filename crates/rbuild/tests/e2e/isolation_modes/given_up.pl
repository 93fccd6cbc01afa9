# Acts that take a capability each, by processes that have given some up or changed their users.
# Prints the error numbers.
use strict;
$| = 1;
my ($other, $f, $own, $none, $cap) = ("/w/other", "/w/f", "/w/own", "/w/none", "security.capability");
my ($acl, $mine, $root, $value) = ("system.posix_acl_access", "user.mine", "/", pack("L5", 0x02000000, 0x400, 0, 0, 0));
my ($times, $rules) = (pack("q4", 1, 1, 1, 1), pack("LSSLSSLSSL", 2, 1, 6, ~0, 4, 4, ~0, 32, 4, ~0));
my ($suid, $open, $sticky) = ("/w/suid", "/w/open", "/w/sticky");
my $default = 0xa80425fb;
my $fd;

sub got { my ($name, @of) = @_; my $got = syscall(shift(@of), @of); print " $name=", $got == -1 ? $! + 0 : "ok" }
sub sets { my ($e, $p) = @_; my ($head, $sets) = (pack("Ll", 0x20080522, 0), pack("L6", $e, $p, 0, 0, 0, 0)); (126, $head, $sets) }
sub act {
    print "@_:";
    unlink $f, "/w/p";
    sysopen(my $made, $f, 0101, 0644);
    got("attribute", 188, $f, $mine, $mine, 4, 0); got("again", 188, $f, $mine, $mine, 4, 1); got("fd attribute", 190, fileno $made, $mine, $mine, 4, 2);
    got("remove", 197, $f, $mine); got("remove none", 197, $f, $mine);
    got("chown", 92, $f, 33, 33); got("chgrp", 92, $other, -1, 44);
    got("chown -1", 92, $other, -1, -1); got("chown -1 suid", 92, $suid, -1, -1); printf " %o", (stat $suid)[2];
    got("touch", 280, -100, $other, 0, 0); got("touch open", 280, -100, $open, 0, 0); got("touch suid", 235, $suid, 0);
    got("attribute of other", 188, $other, $mine, $mine, 4, 0); got("attribute of open", 188, $open, $mine, $mine, 4, 0); got("attribute of sticky", 188, $sticky, $mine, $mine, 4, 0);
    got("chmod", 90, $other, 0644); got("chmod own", 90, $own, 0644); got("chmod none", 90, $none, 0644);
    got("fchmod", 91, $fd, 0644); got("fchmod made", 91, fileno $made, 0600); got("fchmod 99", 91, 99, 0644);
    got("fchmodat", 268, -100, $other, 0644); got("fchmodat2", 452, -100, $other, 0644, 0); got("fchmodat2 flag", 452, -100, $other, 0644, 4);
    got("sgid", 90, $own, 02755); printf(" %o", (stat $own)[2] & 07777);
    got("times", 280, -100, $other, $times, 0); got("own times", 280, -100, $own, $times, 0); got("fd times", 280, $fd, 0, $times, 0);
    got("acl", 188, $other, $acl, $rules, length $rules, 0); got("own acl", 188, $own, $acl, $rules, length $rules, 0);
    got("setcap", 188, $f, $cap, $value, 20, 0); got("fsetcap", 190, fileno $made, $cap, $value, 20, 0); got("delcap", 199, fileno $made, $cap);
    got("chroot", 161, $root); got("chroot none", 161, $none); got("chroot file", 161, $f);
    got("fifo", 133, "/w/p", 010644, 0); got("setgroups", 116, 0, 0);
    got("bound", 157, 24, 40, 0, 0, 0); got("bits", 157, 28, 0, 0, 0, 0);
    my ($head, $got) = (pack("Ll", 0x20080522, 0), "\0" x 24); got("sets", 125, $head, $got); printf(" %x %x %x", unpack "L3", $got);
    $head = pack("Ll", 0x20080522, $$); got("own sets", 125, $head, $got); printf(" %x %x %x", unpack "L3", $got); got("same", 126, $head, $got);
    got("nothing", sets(0, 0)) if $_[0] eq "uid55"; got("more", sets(1, 1)) if $_[0] eq "uid55";
    got("setuid", 105, 77); got("setgid", 106, 77); print "\n";
    exit 0;
}
# Runs what prepares a process, and then the acts in it, or in a program that it executes.
sub process { my ($name, $prepare, $executes) = @_; chmod 04755, $suid; my $pid = fork;
    if (!$pid) { $prepare->(); if ($executes) { exec "perl", $0, "$name exec" } act($name) }
    waitpid $pid, 0;
}
sysopen($fd, $other, 0) && ($fd = fileno $fd) if @ARGV;
act(@ARGV) if @ARGV;

mkdir "/w"; chmod 0777, "/w"; for my $file ($other, $own, $suid, $open) { open my $made, ">", $file; }
mkdir $sticky; chmod 01777, $sticky; chmod 0666, $open; chown 54, 54, $other, $suid, $open, $sticky; chown 55, 44, $own;
open my $held, "<", $other; $fd = fileno $held;
for my $number (0, 1, 3, 4, 6, 7, 8, 18, 31) {
    my $less = $default & ~(1 << $number);
    process("effective -$number", sub { my @call = sets($less, $default); syscall(126, $call[1], $call[2]) });
    for my $executes (0, 1) {
        process("permitted -$number", sub { my @call = sets($less, $less); syscall(126, $call[1], $call[2]) }, $executes);
        process("bound -$number", sub { syscall(157, 24, $number, 0, 0, 0) }, $executes);
    }
}
process("no root", sub { syscall(157, 28, 3, 0, 0, 0) }, 1);
process("nothing at all", sub { my @call = sets(0, 0); syscall(126, $call[1], $call[2]) });
process("euid55", sub { syscall(117, 55, 55, 0) });
for my $executes (0, 1) {
    process("uid55", sub { syscall(105, 55) }, $executes);
    process("ruid0", sub { syscall(117, 0, 55, 55) }, $executes);
}
process("back", sub { syscall(117, -1, 55, -1); syscall(117, -1, 0, -1) });
process("euid55 and files", sub { syscall(117, 55, 55, 0); syscall(122, 0) });
process("kept", sub { syscall(157, 8, 1, 0, 0, 0); syscall(105, 55) });
process("kept and raised", sub { syscall(157, 8, 1, 0, 0, 0); syscall(105, 55); my @call = sets($default, $default); syscall(126, $call[1], $call[2]) });
process("kept one", sub { syscall(157, 8, 1, 0, 0, 0); syscall(105, 55); my @call = sets(1, 1); syscall(126, $call[1], $call[2]) });
process("files", sub { syscall(122, 55) });
process("files and back", sub { syscall(122, 55); syscall(122, 0) });
process("fixed", sub { syscall(157, 28, 4, 0, 0, 0); syscall(105, 55) });
process("fixed files", sub { syscall(157, 28, 4, 0, 0, 0); syscall(122, 55) });
# Calls that the kernel refuses have no effect; flags of prctl(2) that are locked stay.
process("keep 2", sub { syscall(157, 8, 2, 0, 0, 0); syscall(105, 55) });
process("bits and more", sub { syscall(157, 28, 0x1004, 0, 0, 0); syscall(105, 55) });
process("keep by bits", sub { syscall(157, 28, 0x10, 0, 0, 0); syscall(105, 55) });
process("keep locked", sub { syscall(157, 28, 0x20, 0, 0, 0); syscall(157, 8, 1, 0, 0, 0); syscall(105, 55) });
process("fixed and locked", sub { syscall(157, 28, 0xc, 0, 0, 0); syscall(157, 28, 0, 0, 0, 0); syscall(105, 55) });
process("unknown version", sub { syscall(117, -1, 55, -1); my @call = sets($default, $default); my $head = pack("Ll", 0x1234, 0); syscall(126, $head, $call[2]) });
process("no header", sub { syscall(117, -1, 55, -1); syscall(126, 0, 0) });
process("no sets", sub { syscall(117, -1, 55, -1); my @call = sets(0, 0); syscall(126, $call[1], 0) });
process("of another", sub { syscall(117, -1, 55, -1); my @call = sets($default, $default); my $head = pack("Ll", 0x20080522, 1); syscall(126, $head, $call[2]) });
process("more than permitted", sub { syscall(117, -1, 55, -1); my @call = sets(1, $default | 1 << 21); syscall(126, $call[1], $call[2]) });
process("more effective than permitted", sub { syscall(117, -1, 55, -1); my @call = sets(3, 1); syscall(126, $call[1], $call[2]) });
# What is permitted becomes effective with the return of root.
my $some = $default & ~(1 << 8 | 1 << 18 | 1 << 31);
process("one, and back", sub { syscall(117, -1, 55, -1); my @call = sets(1, $some); syscall(126, $call[1], $call[2]); syscall(117, -1, 0, -1) });
process("kept, one, and back", sub { syscall(157, 8, 1, 0, 0, 0); syscall(117, 55, 55, 55); my @call = sets(1 << 7, $some); syscall(126, $call[1], $call[2]); syscall(117, 0, 0, 0) });
process("none effective", sub { my @call = sets(0, $some); syscall(126, $call[1], $call[2]); syscall(117, -1, 55, -1) });
