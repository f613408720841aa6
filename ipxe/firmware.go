package ipxe

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"recast/inventory"
)

// What option 93 can hold: the IANA registry "Processor Architecture Types",
// begun by RFC 4578 section 2.1 and RFC 5970 section 3.3.
const (
	FirmwareBIOS          Firmware = 0
	FirmwareItanium       Firmware = 2
	FirmwareX86UEFI       Firmware = 6
	FirmwareX64UEFI       Firmware = 7
	FirmwareEBC           Firmware = 9
	FirmwareARM32UEFI     Firmware = 10
	FirmwareARM64UEFI     Firmware = 11
	FirmwareX86HTTP       Firmware = 15
	FirmwareX64HTTP       Firmware = 16
	FirmwareEBCHTTP       Firmware = 17
	FirmwareARM32HTTP     Firmware = 18
	FirmwareARM64HTTP     Firmware = 19
	FirmwareBIOSHTTP      Firmware = 20
	FirmwareARM32UBoot    Firmware = 21
	FirmwareARM64UBoot    Firmware = 22
	FirmwareARM32UBHTTP   Firmware = 23
	FirmwareARM64UBHTTP   Firmware = 24
	FirmwareRISCV32UEFI   Firmware = 25
	FirmwareRISCV32HTTP   Firmware = 26
	FirmwareRISCV64UEFI   Firmware = 27
	FirmwareRISCV64HTTP   Firmware = 28
	FirmwareRISCV128UEFI  Firmware = 29
	FirmwareRISCV128HTTP  Firmware = 30
	FirmwareLoong32UEFI   Firmware = 37
	FirmwareLoong32HTTP   Firmware = 38
	FirmwareLoong64UEFI   Firmware = 39
	FirmwareLoong64HTTP   Firmware = 40
	FirmwareRaspberryBoot Firmware = 41
)

// firmware is what we know of one value of option 93. An entry without loader
// is a firmware we can name but have nothing for.
type firmware struct {
	name   string
	loader string // drives the network card through the firmware, where there is one that does
	own    string // brings its own drivers
	local  string // starts the machine's disk
	signed string // what Secure Boot lets start
	arch   inventory.Arch
	uefi   bool
	http   bool
	cure   string // what a person does about one that we have no loader for
}

// Boards whose own firmware loads a board's files and no program that is not made
// for it. The same boards with UEFI, which is software there, ask as arm64 UEFI.
const (
	ubootCure = "let it boot by EFI, as U-Boot's standard boot does after its own names (it asks again as arm64 UEFI), or by its disk"
	piCure    = "put UEFI firmware for it on its card or flash (it then asks as arm64 UEFI), or let it boot by its card or its own server"
)

// Firmwares that get the same, under several numbers.
var (
	bios  = firmware{name: "x86 BIOS", loader: LoaderUndionly, own: LoaderPXE, local: LoaderLocalBIOS, arch: inventory.AMD64}
	x64   = firmware{name: "x86-64 UEFI", loader: LoaderSNPOnly, own: LoaderAMD64, local: LoaderLocalAMD64, signed: LoaderShimAMD64, arch: inventory.AMD64, uefi: true}
	arm64 = firmware{name: "arm64 UEFI", loader: LoaderARM64, own: LoaderARM64, arch: inventory.ARM64, uefi: true}
	riscv = firmware{name: "riscv64 UEFI", loader: LoaderRISCV64, own: LoaderRISCV64, arch: "riscv64", uefi: true}
	loong = firmware{name: "loongarch64 UEFI", loader: LoaderLoong64, own: LoaderLoong64, arch: "loong64", uefi: true}
)

func (f firmware) byHTTP() firmware {
	f.name, f.http = f.name+" HTTP", true
	return f
}

var firmwares = map[Firmware]firmware{
	FirmwareBIOS:    bios,
	FirmwareItanium: {name: "Itanium", uefi: true},
	FirmwareX86UEFI: {name: "x86 UEFI (32 bit)", uefi: true},
	// RFC 4578 gave 7 to EFI byte code and 9 to x86-64; its erratum 4624 swaps
	// them, and x86-64 machines send either.
	FirmwareX64UEFI:       x64,
	FirmwareEBC:           x64,
	FirmwareARM32UEFI:     {name: "arm UEFI (32 bit)", uefi: true},
	FirmwareARM64UEFI:     arm64,
	FirmwareX86HTTP:       {name: "x86 UEFI HTTP (32 bit)", uefi: true, http: true},
	FirmwareX64HTTP:       x64.byHTTP(),
	FirmwareEBCHTTP:       x64.byHTTP(),
	FirmwareARM32HTTP:     {name: "arm UEFI HTTP (32 bit)", uefi: true, http: true},
	FirmwareARM64HTTP:     arm64.byHTTP(),
	FirmwareBIOSHTTP:      {name: "x86 BIOS HTTP", http: true},
	FirmwareARM32UBoot:    {name: "arm U-Boot (32 bit)"},
	FirmwareARM64UBoot:    {name: "arm64 U-Boot", cure: ubootCure},
	FirmwareARM32UBHTTP:   {name: "arm U-Boot HTTP (32 bit)", http: true},
	FirmwareARM64UBHTTP:   {name: "arm64 U-Boot HTTP", http: true, cure: ubootCure},
	FirmwareRISCV32UEFI:   {name: "riscv32 UEFI", uefi: true},
	FirmwareRISCV32HTTP:   {name: "riscv32 UEFI HTTP", uefi: true, http: true},
	FirmwareRISCV64UEFI:   riscv,
	FirmwareRISCV64HTTP:   riscv.byHTTP(),
	FirmwareRISCV128UEFI:  {name: "riscv128 UEFI", uefi: true},
	FirmwareRISCV128HTTP:  {name: "riscv128 UEFI HTTP", uefi: true, http: true},
	FirmwareLoong32UEFI:   {name: "loongarch32 UEFI", uefi: true},
	FirmwareLoong32HTTP:   {name: "loongarch32 UEFI HTTP", uefi: true, http: true},
	FirmwareLoong64UEFI:   loong,
	FirmwareLoong64HTTP:   loong.byHTTP(),
	FirmwareRaspberryBoot: {name: "the boot code of a Raspberry Pi", cure: piCure},
}

// String names the firmware for people; an unknown number is shown as one.
func (f Firmware) String() string {
	if known, ok := firmwares[f]; ok {
		return known.name
	}
	return "firmware " + strconv.Itoa(int(f))
}

// UEFI reports whether the machine started by UEFI.
func (f Firmware) UEFI() bool { return firmwares[f].uefi }

// HTTP reports whether the firmware wants a URL and not a TFTP name.
func (f Firmware) HTTP() bool { return firmwares[f].http }

// Loader is the file this firmware starts where nothing else is declared; false
// when we have none for it.
func (f Firmware) Loader() (string, bool) {
	l := firmwares[f].loader
	return l, l != ""
}

// Cure is what a person does about a firmware that has no loader.
func (f Firmware) Cure() string {
	return cmp.Or(firmwares[f].cure, "boot it in another mode of its firmware")
}

// CPU is the architecture of the machine's processors; "" where the number does
// not tell. It may be one that recast has no ramdisk for.
func (f Firmware) CPU() inventory.Arch { return firmwares[f].arch }

// PickFirmware chooses from the list that option 93 may be: the first one we
// have a loader for, else the first. An absent option is an old BIOS ROM.
func PickFirmware(list []uint16) Firmware {
	for _, n := range list {
		if _, ok := Firmware(n).Loader(); ok {
			return Firmware(n)
		}
	}
	if len(list) == 0 {
		return FirmwareBIOS
	}
	return Firmware(list[0])
}

// parseArch reads what iPXE says of itself: its ${buildarch} and ${platform}
// with a dot between ("x86_64.efi", "i386.pcbios").
func parseArch(s string) (Firmware, error) {
	arch, platform, _ := strings.Cut(s, ".")
	if platform == "pcbios" {
		return FirmwareBIOS, nil
	}
	if platform == "efi" {
		switch arch {
		case "x86_64":
			return FirmwareX64UEFI, nil
		case "i386":
			return FirmwareX86UEFI, nil
		case "arm64":
			return FirmwareARM64UEFI, nil
		case "arm32":
			return FirmwareARM32UEFI, nil
		case "riscv64":
			return FirmwareRISCV64UEFI, nil
		case "riscv32":
			return FirmwareRISCV32UEFI, nil
		case "loong64":
			return FirmwareLoong64UEFI, nil
		}
	}
	return 0, fmt.Errorf("parse arch %q: want ${buildarch}.${platform} of iPXE, such as x86_64.efi or i386.pcbios", s)
}
