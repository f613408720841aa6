#!/usr/bin/env bash
# setup.sh [packages] [loaders] [kernel] [arm64] [peers]: brings what the lab and the
# tests need onto a Debian machine: without an argument all but arm64, the firmware boots
# of that, and peers, the servers of benchmarks. Safe to repeat, and quick when nothing
# is missing.
set -eu
cd "$(dirname "$0")"

# One package a line, with what needs it.
packages='
qemu-system-x86     the machines of the lab
qemu-utils          qemu-img, which judges how they read virtual media
seabios             their BIOS
swtpm               their TPM
sbsigntool          signs loaders for Secure Boot
systemd-boot-efi    the stub of the unified ramdisk
ipxe-qemu           the boot ROMs of their network cards
ovmf                their UEFI
mmdebstrap          builds the debian image
gdisk               partitions images
mtools              fills EFI system partitions without mounting
dosfstools          checks configuration volumes
e2fsprogs           fills root file systems without mounting
grub-common         grub-mkimage
grub-pc-bin         the images boot loader under BIOS
grub-efi-amd64-bin  and under UEFI
busybox-static      userland of the tiny image; a TFTP client
cryptsetup-bin      veritysetup, for its root under dm-verity
zstd                reads packs in the tests
xz-utils            packs images in the tests
cpio                reads the ramdisk in the tests
ipmitool            judges the virtual BMC
freeipmi-tools      judges it too
ipmiutil            so does this
openipmi            ipmi_sim: a BMC that is not ours
python3-pyghmi      fakebmc: another
python3-sushy       judges the virtual Redfish service
redfishtool         judges it too
openssh-client      and its console by SSH
iproute2            network namespaces
util-linux          nsenter
nftables            drops packets in the tests
nmap                looks for DHCP servers
systemd             networkd, a DHCP client
dnsmasq-base        a foreign DHCP server
udhcpc              a DHCP client
isc-dhcp-client     another
isc-dhcp-relay      a relay between
dhcpcd-base         one more DHCP client
radvd               a router of IPv6
kea-admin           perfdhcp: many DHCP clients at once
tftp-hpa            a TFTP client
atftp               another, that asks for windows
tftpd-hpa           a TFTP server to be held against
curl                an HTTP and TFTP client
tshark              reads captures, and finds malformed packets
etcd-server         the other store
strace              counts system calls
ca-certificates     the Go module proxy by HTTPS
'

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

# What is written here belongs to who called sudo, else to the tree's owner.
owner=${SUDO_UID:-$(stat -c %u .)}:${SUDO_GID:-$(stat -c %g .)}
give() { [ "$(id -u)" != 0 ] || chown -R "$owner" "$@"; }

tmp=
policy=
cleanup() {
	[ -z "$tmp" ] || rm -rf "$tmp"
	[ -z "$policy" ] || rm -f "$policy"
}
trap cleanup EXIT
# scratch makes the folder $tmp/$1, which is gone when we end.
scratch() {
	[ -n "$tmp" ] || tmp=$(mktemp -d)
	mkdir -p "$tmp/$1"
}

updated=
update() {
	[ -z "$updated" ] || return 0
	[ "$(id -u)" = 0 ] || return 0
	say "apt-get update"
	apt-get update -qq
	updated=yes
}

setup_packages() {
	local name _ missing='' enabled='' unit
	while read -r name _; do
		[ -n "$name" ] || continue
		[ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing="$missing $name"
	done <<<"$packages"
	[ -n "$missing" ] || return 0
	[ "$(id -u)" = 0 ] || die "missing packages:$missing; run: sudo ./setup.sh packages"
	update
	say "installing$missing"
	# Nothing of this may become a service of the machine: not now, and not at its
	# next start.
	if [ ! -e /usr/sbin/policy-rc.d ]; then
		policy=/usr/sbin/policy-rc.d
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
	fi
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
	# Nor a daily job: ipmiutil's empties the event log of the machine's own BMC. A
	# configuration file that was removed stays so at the next upgrade.
	for name in $missing; do
		dpkg -L "$name" | sed -n '/^\/etc\/cron\.[a-z]*\/./p' | xargs -r rm -f
	done
	if command -v systemctl >/dev/null; then
		for name in $missing; do
			enabled="$enabled $(dpkg -L "$name" | sed -n -e 's,.*/systemd/system/\([^/]*\.service\)$,\1,p' -e 's,^/etc/init.d/\([^/]*\)$,\1.service,p' | tr '\n' ' ')"
		done
		for unit in $enabled; do systemctl disable --quiet "$unit" 2>/dev/null || true; done
	fi
}

# The apt that asks the machine's own mirror for another suite or architecture, and
# leaves the system's configuration and lists alone. An empty suite is the system's.
other_apt() {
	local suite=$1 arch=$2 dir codename uri key
	scratch "apt-$arch"
	dir=$tmp/apt-$arch
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	[ -n "$codename" ] || return 1
	uri=$(apt-get indextargets --format '$(CREATED_BY) $(RELEASE) $(REPO_URI)' |
		awk -v c="$codename" '$1 == "Packages" && $2 == c { print $3; exit }')
	[ -n "$uri" ] || return 1
	# The keyring that the system trusts this mirror with.
	key=$(grep -rhoiE '(^Signed-By: *|signed-by=)/[^] ]+' /etc/apt/sources.list /etc/apt/sources.list.d 2>/dev/null | sed 's,^[^/]*,,' | grep -m1 debian || true)
	[ -n "$key" ] || key=/usr/share/keyrings/debian-archive-keyring.gpg
	[ -e "$key" ] || key=
	echo "deb [arch=$arch${key:+ signed-by=$key}] $uri ${suite:-$codename} main" >"$dir/sources.list"
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	apt_other=(-qq -o APT::Architecture="$arch" -o APT::Architectures="$arch"
		-o Dir::Etc::sourcelist="$dir/sources.list" -o Dir::Etc::sourceparts=/dev/null
		-o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir/cache"
		-o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
		-o APT::Sandbox::User=root)
	apt-get "${apt_other[@]}" update
}

# The loaders by name, each with the package it is taken from and where it stands
# there. The first package that is newer in testing is taken from there.
loaders='
ipxe-amd64.efi    ipxe                   usr/lib/ipxe/ipxe-amd64.efi boot/ipxe.efi
snponly.efi       ipxe                   usr/lib/ipxe/snponly.efi
undionly.kpxe     ipxe                   usr/lib/ipxe/undionly.kpxe
ipxe.pxe          ipxe                   usr/lib/ipxe/ipxe.pxe
ipxe.lkrn         ipxe                   usr/lib/ipxe/ipxe.lkrn boot/ipxe.lkrn
ipxe-arm64.efi    ipxe                   usr/lib/ipxe/ipxe-arm64.efi
ipxe-riscv64.efi  ipxe                   usr/lib/ipxe/ipxe-riscv64.efi
ipxe-loong64.efi  ipxe                   usr/lib/ipxe/ipxe-loong64.efi
shimx64.efi       shim-signed            usr/lib/shim/shimx64.efi.signed
grubx64.efi       grub-efi-amd64-signed  usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed
'

# fetch PACKAGE: its files below $tmp/PACKAGE, its version in $version.
fetch() {
	local dir
	scratch "deb/$1"
	dir=$tmp/deb/$1
	# iPXE of Debian 12 is of 2019. The signed ones must fit the suite: its kernel is
	# signed with the same key.
	if [ "$1" != ipxe ] || ! other_apt testing "$(dpkg --print-architecture)" || ! (cd "$dir" && apt-get "${apt_other[@]}" download "$1"); then
		[ "$1" != ipxe ] || say "the mirror offers no newer iPXE; taking the installed suite's (HTTP only)"
		update
		(cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download "$1") ||
			die "cannot download Debian's $1 package: check the network, then run ./setup.sh loaders again"
	fi
	scratch "$1"
	dpkg-deb -x "$dir/$1"_*.deb "$tmp/$1"
	version=$(dpkg-deb -f "$dir/$1"_*.deb Version)
}

setup_loaders() {
	local to=ipxe/loaders name package paths path version have='' state
	# What this script puts there and how; where that changed, all is made anew.
	state=$(sed -n '/^loaders=/,/^# The ramdisk.s kernel/p' setup.sh | sha256sum | cut -d' ' -f1)
	[ "$(cat $to/.state 2>/dev/null)" != "$state" ] || return 0
	: >"$to/.version"
	while read -r name package paths; do
		[ -n "$name" ] || continue
		case $have in *" $package "*) ;; *)
			fetch "$package"
			echo "$package $version" >>"$to/.version"
			have="$have $package "
			;;
		esac
		for path in $paths; do
			if [ -f "$tmp/$package/$path" ]; then
				cp "$tmp/$package/$path" "$to/.new"
				mv "$to/.new" "$to/$name"
				break
			fi
		done
	done <<<"$loaders"
	setup_local_loaders
	mv "$to/.version" "$to/VERSION"
	echo "$state" >"$to/.state"
	give $to
	say "loaders of $(tr '\n' ',' <$to/VERSION) $(cd $to && ls | grep -v -e README -e VERSION | tr '\n' ' ')"
}

# The GRUBs that a machine loads from the network to start its own disk: no
# network in them, and nothing to ask. Under UEFI the disk's own loader is what
# stands at the removable path, else where an installer put it.
setup_local_loaders() {
	local to=ipxe/loaders
	command -v grub-mkimage >/dev/null || die "grub-mkimage is missing; run: sudo ./setup.sh packages loaders"
	scratch local/uefi/boot/grub
	scratch local/bios/boot/grub
	cat >"$tmp/local/uefi/boot/grub/grub.cfg" <<-'END'
		for file in /EFI/BOOT/BOOTX64.EFI /EFI/debian/shimx64.efi /EFI/debian/grubx64.efi /EFI/ubuntu/shimx64.efi \
			/EFI/redhat/shimx64.efi /EFI/rocky/shimx64.efi /EFI/almalinux/shimx64.efi /EFI/centos/shimx64.efi \
			/EFI/fedora/shimx64.efi /EFI/opensuse/shim.efi /EFI/sles/shim.efi /EFI/Microsoft/Boot/bootmgfw.efi; do
			if search --no-floppy --file --set=root $file; then
				echo "recast: starting $file of $root"
				if chainloader $file; then boot; fi
			fi
		done
		echo "recast: no disk has a loader; leaving"
		exit
	END
	cat >"$tmp/local/bios/boot/grub/grub.cfg" <<-'END'
		set root=hd0
		echo "recast: starting the first disk"
		if chainloader +1; then boot; fi
		echo "recast: the first disk does not start; leaving"
		exit
	END
	# In a memdisk: what is embedded as configuration is read without if and for.
	local_loader x86_64-efi uefi local.efi search search_fs_file fat test boot
	local_loader i386-pc-pxe bios local.pxe biosdisk boot
	# What a virtual CD starts with under BIOS; ipxe/disc.go has the names.
	cat >"$tmp/local/cd.cfg" <<-'END'
		linux16 /ipxe.krn
		initrd16 /recast.ipx
		boot
		echo "recast: iPXE does not start; restarting"
		sleep 20
		reboot
	END
	grub-mkimage -O i386-pc-eltorito -p / -c "$tmp/local/cd.cfg" -o $to/.new biosdisk iso9660 linux16 boot echo sleep reboot
	mv $to/.new $to/cd.img
}

# local_loader FORMAT CONFIG NAME MODULE...
local_loader() {
	local format=$1 config=$2 name=$3
	shift 3
	tar -C "$tmp/local/$config" --owner=0 --group=0 --mtime=@0 -cf "$tmp/local/$config.tar" boot
	grub-mkimage -O "$format" -p '(memdisk)/boot/grub' -m "$tmp/local/$config.tar" -o ipxe/loaders/.new \
		memdisk tar normal configfile part_gpt part_msdos chain echo sleep "$@"
	mv ipxe/loaders/.new "ipxe/loaders/$name"
}

# The ramdisk's kernel: the generic one. Debian's cloud kernel has no AHCI and no
# drivers of real network cards.
setup_kernel() {
	local name dir
	if ls .cache/linux-image-*_amd64.deb >/dev/null 2>&1; then return 0; fi
	update
	name=$(apt-cache depends linux-image-amd64 | awk '/Depends: linux-image-/ { print $2; exit }')
	[ -n "$name" ] || die "cannot find the package that linux-image-amd64 depends on: run apt-get update"
	scratch kernel
	dir=$tmp/kernel
	(cd "$dir" && apt-get -qq -o APT::Sandbox::User=root download "$name") ||
		die "cannot download $name: check the network, then run ./setup.sh kernel again"
	mkdir -p .cache
	mv "$dir"/*.deb .cache/
	give .cache
	say "kernel $name"
}

# What boots an arm64 machine to the agent: a virtual one, and its ramdisk's kernel.
setup_arm64() {
	local name dir
	packages='
	qemu-system-arm   the machine
	qemu-efi-aarch64  its UEFI
	' setup_packages
	if ls .cache/linux-image-*_arm64.deb >/dev/null 2>&1; then return 0; fi
	other_apt "" arm64 || die "cannot read the mirror's list of arm64 packages: check the network, then run ./setup.sh arm64 again"
	name=$(apt-cache "${apt_other[@]}" depends linux-image-arm64 | awk '/Depends: linux-image-/ { print $2; exit }')
	scratch kernel
	dir=$tmp/kernel
	(cd "$dir" && apt-get "${apt_other[@]}" download "$name") ||
		die "cannot download $name: check the network, then run ./setup.sh arm64 again"
	mkdir -p .cache
	mv "$dir"/*.deb .cache/
	give .cache
	say "kernel $name"
}

# What benchmarks hold recast against, where the tests do without.
setup_peers() {
	packages='
	kea-dhcp4-server  DHCP
	nginx-light       files over HTTP
	bmap-tools        images to disks
	casync            images to disks, by chunks
	' setup_packages
}

command -v apt-get >/dev/null || die "this needs Debian's apt-get"
[ $# -gt 0 ] || set -- packages loaders kernel
for part; do
	case $part in
	packages | loaders | kernel | arm64 | peers) "setup_$part" ;;
	*) die "unknown part \"$part\": want packages, loaders, kernel, arm64 or peers" ;;
	esac
done
