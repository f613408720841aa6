// Package ipxe is the whole boot hand-over: which loader a firmware gets, which
// script that loader gets, and the files both of them fetch. Boot file names
// exist here and nowhere else.
package ipxe

import (
	"context"
	"net/netip"

	"recast/inventory"
)

// Client is what a netbooting machine said of itself, in DHCP or in the query
// of its script's URL.
type Client struct {
	MAC    inventory.MAC
	UUID   string // lower case, as SMBIOS prints it; "" unknown. Never a unique key by itself.
	Serial string
	Arch   Firmware   // option 93
	Loader LoaderKind // who is asking
	// Network is the declared Network the packet came in on; "" over HTTP.
	Network string
	Remote  netip.Addr // its own address over HTTP; zero in DHCP
	// Machine that DHCP knows it for by its switch port; "" where its hardware
	// address alone says who it is, and over HTTP.
	Machine string
	// Token is the one-time one by whose address it asks; "" none.
	Token string
}

// Firmware is a client architecture of DHCP option 93 (RFC 4578 and its
// registry).
type Firmware uint16

// LoaderKind tells who is asking.
type LoaderKind string

const (
	LoaderFirmware LoaderKind = "firmware" // the machine's own PXE
	LoaderHTTP     LoaderKind = "http"     // UEFI HTTP Boot
	LoaderIPXE     LoaderKind = "ipxe"
	LoaderGRUB     LoaderKind = "grub" // by TFTP, under Secure Boot
	LoaderOS       LoaderKind = "os"   // an ordinary DHCP client that boots nothing
)

// SpecKind is what a machine boots now.
type SpecKind string

const (
	SpecIgnore  SpecKind = "ignore"  // no answer at all
	SpecLocal   SpecKind = "local"   // its own disk
	SpecRamdisk SpecKind = "ramdisk" // kernel, ramdisk, arguments
)

// Spec is the answer to "what may this machine boot now". It depends only on
// durable state, so that asking twice gives the same answer.
type Spec struct {
	Kind    SpecKind
	Machine string // "" for an undeclared one
	Reason  string // one line for the console and the timeline

	// Trace joins what DHCP, scripts, agent and logs say of one attempt: TraceLen
	// hex digits, or "".
	Trace string

	// Loader is the declared one: "", snponly, ipxe or the digest of an imported
	// one (see inventory.Boot). SecureBoot: only signed ones start.
	Loader     string
	SecureBoot bool
	// Local is the declared way to the disk, with SpecLocal; "" by the firmware.
	Local inventory.LocalBoot

	// Syslog is where the loader may log to; zero: nowhere. iPXE knows SyslogPort alone.
	Syslog netip.AddrPort

	// With SpecRamdisk: paths below the boot listener's root, and the kernel's
	// arguments in order. No argument holds a secret but the claim nonce.
	Kernel  string
	Initrds []string
	Args    []string
}

// TraceLen is how many digits a trace has.
const TraceLen = 16

// Booter is asked by the DHCP server and by the script handler, several times
// in one boot, and answered by the engine from memory. An error means "no
// answer now"; it is logged and the client asks again.
type Booter interface {
	BootSpec(ctx context.Context, c Client) (Spec, error)
}
