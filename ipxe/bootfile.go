package ipxe

import (
	"fmt"
	"net/netip"

	"recast/inventory"
)

// Where the hand-over stands below the root of the boot listener.
const (
	ScriptPath   = "/boot/script"
	AutoexecPath = "/boot/" + AutoexecName
	LoaderPath   = "/boot/loader/" // + the loader's name
	NothingPath  = "/boot/nothing" // never found
)

// SyslogPort is the only one that iPXE logs to (its net/udp/syslog.c).
const SyslogPort = 514

// AutoexecName is the script that iPXE from 1.21 on asks the place it came
// from, before it asks DHCP. Where it is missing some builds stop.
const AutoexecName = "autoexec.ipxe"

// scriptQuery is expanded by iPXE and not by us. netX is the interface opened
// last, the one we are talking over; net0 is only the first of many. The URL
// must fit the 127 bytes of BOOTP's file field (see TestScriptURLFitsTheFileField).
const scriptQuery = "?mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch}.${platform}"

// relativeQuery is scriptQuery for a URL that names no server: up to 2020 iPXE
// takes what stands before the first colon for a scheme, so the MAC goes with
// hyphens.
const relativeQuery = "?mac=${netX/mac:hexhyp}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch}.${platform}"

// Boot turns the answer to "what may this machine boot" into a boot file.
type Boot struct {
	// Have reports whether a loader can be served; nil means every one can.
	Have func(loader string) bool
	// Library of imported loaders; nil is empty.
	Library *Library
}

// Bootfile is what DHCP names as boot file: a TFTP name for a firmware's PXE (its
// URL for one that asks by IPv6, RFC 5970), a URL for HTTP Boot and for iPXE.
// False means "no boot file": the client still gets its address, and its firmware
// goes on to the next boot entry, which is what a local boot is for a machine that
// has not loaded anything yet.
func (b Boot) Bootfile(c Client, spec Spec, server netip.Addr, httpPort int) (file string, ok bool) {
	if spec.Kind == SpecIgnore || !server.IsValid() {
		return "", false
	}
	base := "http://" + netip.AddrPortFrom(server.Unmap(), uint16(httpPort)).String()
	if c.Loader == LoaderIPXE {
		// Local boot too: iPXE has the machine already, and its script says on the
		// console why it goes to the disk.
		return base + ScriptPath + scriptQuery, true
	}
	if spec.Kind == SpecLocal && spec.Local == inventory.LocalHTTP404 && c.Loader == LoaderHTTP {
		return base + NothingPath, true
	}
	loader, why := b.pick(c, spec)
	if loader == "" || why != "" {
		return "", false
	}
	switch c.Loader {
	case LoaderFirmware:
		// A PXE client never gets a URL, an HTTP client never a bare name: each
		// takes the other's for a broken offer.
		if server = server.Unmap(); server.Is6() {
			return "tftp://[" + server.WithZone("").String() + "]/" + loader, !c.Arch.HTTP()
		}
		return loader, !c.Arch.HTTP()
	case LoaderHTTP:
		return base + LoaderPath + loader, true
	}
	return "", false
}

// Explain says in one line why Bootfile named nothing although the machine shall
// load something; "" when it named a file.
func (b Boot) Explain(c Client, spec Spec) string {
	if c.Loader == LoaderIPXE || c.Loader == LoaderOS {
		return ""
	}
	_, why := b.pick(c, spec)
	return why
}

// pick chooses the loader for a firmware. Neither a loader nor a reason: there is
// nothing to load.
func (b Boot) pick(c Client, spec Spec) (loader, why string) {
	f := firmwares[c.Arch]
	switch spec.Kind {
	case SpecRamdisk:
		loader = f.loader
		if spec.Loader == inventory.LoaderIPXE {
			loader = f.own
		}
	case SpecLocal:
		switch spec.Local {
		// Both need something of ours on the machine; the other ways need nothing.
		case inventory.LocalSANBoot:
			loader = f.loader
		case inventory.LocalGRUB:
			loader = f.local
		default:
			return "", ""
		}
	default:
		return "", ""
	}
	if digest, err := inventory.ParseDigest(spec.Loader); err == nil && loader == f.loader {
		x, _ := b.Library.Get(digest)
		if why = b.Library.Problem(digest, f.arch, spec.SecureBoot, c.Loader == LoaderHTTP); why == "" && x.Binary.UEFI != f.uefi {
			why = fmt.Sprintf("the declared loader %s is not for %s", digest.Short(), c.Arch)
		}
		if why != "" {
			return "", why
		}
		if c.Loader == LoaderHTTP {
			return x.Path(), ""
		}
		return tftpFolder + x.Path(), ""
	}
	if spec.SecureBoot {
		if loader, why = b.signed(c, f); why != "" {
			return "", why
		}
	}
	if loader == "" {
		return "", fmt.Sprintf("no loader for %s: %s", c.Arch, c.Arch.Cure())
	}
	if b.Have != nil && !b.Have(loader) {
		return "", fmt.Sprintf("loader %q is missing: %s", loader, loaderCure)
	}
	return loader, ""
}

// httpCure is what to do about a machine that asks by HTTP Boot and has no loader that
// can go on so. How it asks is known from when it asked last.
const httpCure = "set its firmware to PXE and look again (recast inspect), or import a loader that can (recast loader import) and declare its digest as boot.loader"

// signed is the loader for a machine that starts no other. Debian's GRUB, which
// does the work behind shim, has no HTTP client.
func (b Boot) signed(c Client, f firmware) (loader, why string) {
	switch {
	case f.signed == "":
		return "", fmt.Sprintf("it is declared secureBoot, and there is no signed loader for %s: declare an imported one as boot.loader", c.Arch)
	case c.Loader == LoaderHTTP:
		return "", "it is declared secureBoot and asks by HTTP Boot, which Debian's signed GRUB cannot: " + httpCure
	case b.Have != nil && !b.Have(LoaderGRUBAMD64):
		return "", fmt.Sprintf("loader %q is missing: %s", LoaderGRUBAMD64, signedCure)
	case b.Have != nil && !b.Have(f.signed):
		return "", fmt.Sprintf("loader %q is missing: %s", f.signed, signedCure)
	}
	return f.signed, ""
}
