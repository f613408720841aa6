package ipxe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"recast/inventory"
)

// Under Secure Boot the firmware starts Debian's shim, shim the signed GRUB, and
// GRUB the signed kernel. That GRUB speaks TFTP alone, looks for its configuration
// below /grub, and has no way to ask a question but the name of a file: a machine's
// own configuration is named by its hardware address and the number of tries.
const (
	grubConfig  = "grub/grub.cfg"
	grubMachine = grubConfig + "-01-" // + MAC + "/" + try
)

// Optional tells of a file that loaders ask for and do without: its absence stops
// no machine.
func Optional(name string) bool {
	name = strings.Trim(name, `"`)
	switch path.Base(name) {
	case AutoexecName, "revocations_sku.efi", "revocations_sbat.efi", "shim_certificate_0.efi":
		return true
	}
	return strings.HasPrefix(name, "grub/")
}

// GRUBConfig is what every GRUB loads first; it knows its own hardware address.
// Where it was started by other means than the network's, there is none.
func GRUBConfig() string {
	var s script
	s.add("set pager=0")
	for try := range giveUpAfter {
		s.add("configfile", "/"+grubMachine+"$net_default_mac/"+num(try))
		s.add("echo 'recast: no configuration; asking again'")
		s.add("sleep", num(min(firstWait<<try, maxWait)))
	}
	s.add("reboot")
	return s.String()
}

// RenderGRUB is Render for GRUB: the same Spec, refusals and tries. Every value
// stands between single quotes, where GRUB expands nothing.
func RenderGRUB(spec Spec, c Client, try int) (string, error) {
	switch spec.Kind {
	case SpecRamdisk:
	case SpecLocal, SpecIgnore:
		return grubLocal(spec), nil
	default:
		return "", fmt.Errorf("render GRUB configuration: unknown kind %q", spec.Kind)
	}
	kernel, err := checkPath(spec.Kernel)
	if err != nil {
		return "", fmt.Errorf("render kernel: %w", err)
	}
	line, initrd := []safe{"if linux", kernel}, []safe{"  if initrd"}
	for _, a := range spec.Args {
		arg, err := checkArg(a)
		if err != nil {
			return "", fmt.Errorf("render kernel argument: %w", err)
		}
		line = append(line, "'"+arg+"'")
	}
	for _, p := range spec.Initrds {
		path, err := checkPath(p)
		if err != nil {
			return "", fmt.Errorf("render ramdisk: %w", err)
		}
		initrd = append(initrd, path)
	}
	s := grubBegin(spec, "starting the ramdisk")
	s.add(append(line, "; then")...)
	s.add(append(initrd, "; then boot; fi")...)
	s.add("fi")
	s.add("echo 'recast: the ramdisk did not start'")
	s.grubAgain(c, try)
	return s.String(), nil
}

// grubLocal starts the disk's own loader, which Secure Boot checks as the firmware
// would. Where there is none, or where it is declared so, GRUB ends.
func grubLocal(spec Spec) string {
	s := grubBegin(spec, "starting the local disk")
	if spec.Local != inventory.LocalExit {
		s.add("for file in", safe(strings.Join(diskLoaders, " "))+"; do")
		s.add("  if search --no-floppy --file --set=root $file; then")
		s.add("    if chainloader $file; then boot; fi")
		s.add("  fi")
		s.add("done")
		s.add("echo 'recast: no disk has a loader that starts'")
	}
	s.add("exit")
	return s.String()
}

// diskLoaders are where systems put what starts them: the removable path, else the
// place of their installers. setup.sh has the same list for local.efi.
var diskLoaders = []string{
	"/EFI/BOOT/BOOTX64.EFI", "/EFI/debian/shimx64.efi", "/EFI/debian/grubx64.efi", "/EFI/ubuntu/shimx64.efi",
	"/EFI/redhat/shimx64.efi", "/EFI/rocky/shimx64.efi", "/EFI/almalinux/shimx64.efi", "/EFI/centos/shimx64.efi",
	"/EFI/fedora/shimx64.efi", "/EFI/opensuse/shim.efi", "/EFI/sles/shim.efi", "/EFI/Microsoft/Boot/bootmgfw.efi",
}

// grubWait says why there is no answer yet and asks again.
func grubWait(why string, c Client, try int) string {
	var s script
	s.grubSay("no boot decision yet: " + clean(why))
	s.grubAgain(c, try)
	return s.String()
}

// grubTurn is RenderTurn for GRUB.
func grubTurn(spec Spec, c Client, again time.Duration, waiting, try int) string {
	s := grubBegin(spec, "waits for its turn")
	s.grubSay(num(waiting) + " machines wait to fetch the ramdisk; asking again in " + num(int(again/time.Second)) + " s")
	s.add("sleep", num(int(again/time.Second)))
	s.add("configfile", grubName(c, try))
	s.grubAgain(c, try)
	return s.String()
}

func grubBegin(spec Spec, doing safe) *script {
	var s script
	if spec.Trace != "" {
		s.grubSay("trace " + clean(spec.Trace))
	}
	who := clean(spec.Machine)
	if who == "" {
		who = "undeclared machine"
	}
	if why := clean(spec.Reason); why != "" {
		doing += ": " + why
	}
	s.grubSay(who + ": " + doing)
	return &s
}

func (s *script) grubSay(text safe) { s.add("echo 'recast: " + text + "'") }

// grubAgain waits, asks for the next try's configuration, and at the end restarts
// the machine.
func (s *script) grubAgain(c Client, try int) {
	try = max(try, 0)
	if try >= giveUpAfter-1 {
		s.grubSay("giving up; restarting")
		s.add("reboot")
		return
	}
	wait := num(min(firstWait<<try, maxWait))
	s.grubSay("asking again in " + wait + " s, then " + num(giveUpAfter) + " times at most until a restart (" + num(try+1) + ")")
	s.add("sleep", wait)
	s.add("configfile", grubName(c, try+1))
	// The server was away for a moment; what is above this file asks from the start.
	s.grubSay("the server does not answer")
}

func grubName(c Client, try int) safe { return "/" + grubMachine + safe(c.MAC) + "/" + num(try) }

// parseGRUBName reads a machine's configuration's name; false for every other.
// Hyphens are the spelling of GRUB's own search, colons that of its variable.
func parseGRUBName(name string) (mac inventory.MAC, try int, ok bool) {
	rest, ok := strings.CutPrefix(name, grubMachine)
	if !ok {
		return "", 0, false
	}
	address, number, numbered := strings.Cut(rest, "/")
	hw, err := net.ParseMAC(address)
	if err != nil || len(hw) != 6 {
		return "", 0, false
	}
	if numbered {
		if try, err = strconv.Atoi(number); err != nil || try < 0 || try > giveUpAfter || len(number) > 2 {
			return "", 0, false
		}
	}
	return inventory.MACOf(hw), try, true
}

// GRUB answers a TFTP request for a configuration; false where the name is none.
// Every answer is rendered anew: it changes with the machine's state.
func (h *Handler) GRUB(ctx context.Context, name string, remote netip.Addr) (text string, ok bool) {
	if name == grubConfig {
		return GRUBConfig(), true
	}
	mac, try, ok := parseGRUBName(name)
	if !ok {
		return "", false
	}
	c := Client{MAC: mac, Arch: FirmwareX64UEFI, Loader: LoaderGRUB, Remote: remote}
	seen := inventory.Observation{Kind: inventory.SawScript, Remote: remote, MAC: mac, Client: string(c.Loader), Arch: uint16(c.Arch)}
	spec, err := h.Booter.BootSpec(ctx, c)
	switch {
	case err != nil:
		why := "the server is not ready"
		if errors.Is(err, context.DeadlineExceeded) {
			why = "the server is busy"
		}
		text, seen.Detail, seen.Error = grubWait(why, c, try), "wait", fmt.Sprintf("ask for the boot decision: %v", err)
	case spec.Kind == SpecRamdisk:
		if again, waiting, ok := h.Turns.Ask(remote, h.now()); !ok {
			text, seen.Detail = grubTurn(spec, c, again, waiting, try), h.turnDetail(again, waiting)
			break
		}
		fallthrough
	default:
		seen.Detail = told(spec)
		if text, err = RenderGRUB(spec, c, try); err != nil {
			text, seen.Detail, seen.Error = grubWait("the boot decision cannot be rendered; see the server's log", c, try), "wait", err.Error()
		}
	}
	if seen.Error != "" {
		h.log().Warn("no GRUB configuration yet", "mac", mac, "remote", remote, "try", try, "error", seen.Error)
	}
	h.log().Debug("GRUB configuration", "mac", mac, "remote", remote, "try", try, "answer", seen.Detail, "trace", spec.Trace)
	seen.Bytes = int64(len(text))
	h.observe(seen)
	return text, true
}
