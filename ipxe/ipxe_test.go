package ipxe

import (
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

var server = netip.MustParseAddr("10.20.0.1")

func TestBootfilePerClient(t *testing.T) {
	ramdisk, local, ignore := Spec{Kind: SpecRamdisk}, Spec{Kind: SpecLocal}, Spec{Kind: SpecIgnore}
	own, snp := Spec{Kind: SpecRamdisk, Loader: inventory.LoaderIPXE}, Spec{Kind: SpecRamdisk, Loader: inventory.LoaderSNPOnly}
	by := func(way inventory.LocalBoot) Spec { return Spec{Kind: SpecLocal, Local: way} }
	const script = "http://10.20.0.1:8080/boot/script?mac=${netX/mac}&uuid=${uuid}&serial=${serial:uristring}&arch=${buildarch}.${platform}"
	for _, tc := range []struct {
		name   string
		arch   Firmware
		loader LoaderKind
		spec   Spec
		want   string
	}{
		{"BIOS", 0, LoaderFirmware, ramdisk, "undionly.kpxe"},
		{"x64 UEFI as the RFC has it", 9, LoaderFirmware, ramdisk, "snponly.efi"},
		{"x64 UEFI as its erratum has it", 7, LoaderFirmware, ramdisk, "snponly.efi"},
		{"arm64 UEFI", 11, LoaderFirmware, ramdisk, "ipxe-arm64.efi"},
		{"x64 HTTP Boot", 16, LoaderHTTP, ramdisk, "http://10.20.0.1:8080/boot/loader/snponly.efi"},
		{"BC HTTP Boot", 17, LoaderHTTP, ramdisk, "http://10.20.0.1:8080/boot/loader/snponly.efi"},
		{"arm64 HTTP Boot", 19, LoaderHTTP, ramdisk, "http://10.20.0.1:8080/boot/loader/ipxe-arm64.efi"},
		{"HTTP Boot with the PXE number", 7, LoaderHTTP, ramdisk, "http://10.20.0.1:8080/boot/loader/snponly.efi"},
		{"a PXE client with the HTTP number gets no URL and no name", 16, LoaderFirmware, ramdisk, ""},
		{"Itanium has no loader", 2, LoaderFirmware, ramdisk, ""},
		{"32-bit UEFI has no loader", 6, LoaderFirmware, ramdisk, ""},
		{"32-bit RISC-V has no loader", 25, LoaderFirmware, ramdisk, ""},
		{"riscv64 UEFI", 27, LoaderFirmware, ramdisk, "ipxe-riscv64.efi"},
		{"riscv64 HTTP Boot", 28, LoaderHTTP, ramdisk, "http://10.20.0.1:8080/boot/loader/ipxe-riscv64.efi"},
		{"loong64 UEFI", 39, LoaderFirmware, ramdisk, "ipxe-loong64.efi"},
		{"arm32 HTTP Boot has no loader", 18, LoaderHTTP, ramdisk, ""},
		{"BIOS with iPXE's own drivers", 0, LoaderFirmware, own, "ipxe.pxe"},
		{"x64 UEFI with iPXE's own drivers", 9, LoaderFirmware, own, "ipxe-amd64.efi"},
		{"x64 HTTP Boot with iPXE's own drivers", 16, LoaderHTTP, own, "http://10.20.0.1:8080/boot/loader/ipxe-amd64.efi"},
		{"arm64 UEFI with iPXE's own drivers", 11, LoaderFirmware, own, "ipxe-arm64.efi"},
		{"snponly by name", 7, LoaderFirmware, snp, "snponly.efi"},
		{"snponly under BIOS is undionly", 0, LoaderFirmware, snp, "undionly.kpxe"},
		{"to the disk by exit", 7, LoaderFirmware, by(inventory.LocalExit), ""},
		{"to the disk by sanboot needs iPXE", 0, LoaderFirmware, by(inventory.LocalSANBoot), "undionly.kpxe"},
		{"to the disk by GRUB", 7, LoaderFirmware, by(inventory.LocalGRUB), "local.efi"},
		{"to the disk by GRUB under BIOS", 0, LoaderFirmware, by(inventory.LocalGRUB), "local.pxe"},
		{"to the disk by GRUB over HTTP", 16, LoaderHTTP, by(inventory.LocalGRUB), "http://10.20.0.1:8080/boot/loader/local.efi"},
		{"to the disk by GRUB that there is not", 11, LoaderFirmware, by(inventory.LocalGRUB), ""},
		{"to the disk by 404", 16, LoaderHTTP, by(inventory.LocalHTTP404), "http://10.20.0.1:8080/boot/nothing"},
		{"to the disk by 404 without HTTP", 7, LoaderFirmware, by(inventory.LocalHTTP404), ""},
		{"Raspberry Pi has no loader", 41, LoaderFirmware, ramdisk, ""},
		{"a number nobody registered", 4711, LoaderFirmware, ramdisk, ""},
		{"iPXE under BIOS", 0, LoaderIPXE, ramdisk, script},
		{"iPXE of a firmware without loader", 6, LoaderIPXE, ramdisk, script},
		{"iPXE that shall boot its disk says so on the console", 7, LoaderIPXE, local, script},
		{"BIOS that shall boot its disk", 0, LoaderFirmware, local, ""},
		{"UEFI that shall boot its disk", 7, LoaderFirmware, local, ""},
		{"HTTP Boot that shall boot its disk", 16, LoaderHTTP, local, ""},
		{"a stranger's firmware", 7, LoaderFirmware, ignore, ""},
		{"a stranger's iPXE", 7, LoaderIPXE, ignore, ""},
		{"an operating system", 0, LoaderOS, ramdisk, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, ok := Boot{}.Bootfile(Client{Arch: tc.arch, Loader: tc.loader}, tc.spec, server, 8080)
			if got != tc.want && ok || ok != (tc.want != "") {
				t.Errorf("Bootfile = %q, %v; want %q", got, ok, tc.want)
			}
		})
	}
}

func TestBootfileNamesNoLoaderThatIsMissing(t *testing.T) {
	b := Boot{Have: func(string) bool { return false }}
	c := Client{Arch: 7, Loader: LoaderFirmware}
	if file, ok := b.Bootfile(c, Spec{Kind: SpecRamdisk}, server, 8080); ok {
		t.Errorf("named %q", file)
	}
	if why := b.Explain(c, Spec{Kind: SpecRamdisk}); !strings.Contains(why, "snponly.efi") || !strings.Contains(why, "apt-get install ipxe") {
		t.Errorf("Explain = %q: want the file and the cure", why)
	}
	if why := (Boot{}).Explain(Client{Arch: 6, Loader: LoaderFirmware}, Spec{Kind: SpecRamdisk}); why != "no loader for x86 UEFI (32 bit): boot it in another mode of its firmware" {
		t.Errorf("Explain = %q", why)
	}
	if why := (Boot{}).Explain(c, Spec{Kind: SpecRamdisk}); why != "" {
		t.Errorf("Explain of a machine that boots = %q", why)
	}
}

// Some ROMs read only BOOTP's file field: 128 bytes with the closing zero.
func TestScriptURLFitsTheFileField(t *testing.T) {
	file, ok := Boot{}.Bootfile(Client{Loader: LoaderIPXE}, Spec{Kind: SpecRamdisk}, netip.MustParseAddr("255.255.255.255"), 65535)
	if !ok || len(file) > 127 {
		t.Errorf("%d bytes: %s", len(file), file)
	}
}

func TestPickFirmwareTakesTheFirstThatCanBoot(t *testing.T) {
	for _, tc := range []struct {
		list []uint16
		want Firmware
	}{
		{nil, FirmwareBIOS},
		{[]uint16{7}, FirmwareX64UEFI},
		{[]uint16{6, 9}, FirmwareEBC},
		{[]uint16{2, 6}, FirmwareItanium},
	} {
		if got := PickFirmware(tc.list); got != tc.want {
			t.Errorf("PickFirmware(%v) = %v, want %v", tc.list, got, tc.want)
		}
	}
}

func TestALoaderIsLackedByWhoIsDeclaredToNeedIt(t *testing.T) {
	with := func(names ...string) *Loaders {
		l := &Loaders{memFS: memFS{}}
		for _, n := range names {
			l.memFS[n] = []byte("x")
		}
		return l
	}
	byGRUB, byMedia := inventory.Boot{Local: inventory.LocalGRUB}, inventory.Boot{Via: inventory.BootMedia, Local: inventory.LocalGRUB}
	for _, tc := range []struct {
		have *Loaders
		m    inventory.Machine
		want string
	}{
		{with(), inventory.Machine{}, ""},
		{with(), inventory.Machine{Boot: byGRUB, Firmware: inventory.BIOS}, LoaderLocalBIOS},
		{with(), inventory.Machine{Boot: byGRUB, Firmware: inventory.UEFI}, LoaderLocalAMD64},
		{with(LoaderLocalBIOS), inventory.Machine{Boot: byGRUB}, LoaderLocalAMD64},
		{with(LoaderLocalBIOS, LoaderLocalAMD64), inventory.Machine{Boot: byGRUB}, ""},
		{with(LoaderShimAMD64), inventory.Machine{SecureBoot: true}, LoaderGRUBAMD64},
		{with(LoaderShimAMD64, LoaderGRUBAMD64), inventory.Machine{SecureBoot: true, Boot: byGRUB}, ""}, // the signed one
		{with(), inventory.Machine{Boot: byMedia, Arch: inventory.AMD64}, LoaderAMD64},
		{with(LoaderKernel), inventory.Machine{Boot: byMedia, Arch: inventory.AMD64, Firmware: inventory.BIOS}, LoaderCD},
		{with(LoaderKernel, LoaderCD), inventory.Machine{Boot: byMedia, Arch: inventory.AMD64}, ""},
		{with(LoaderKernel, LoaderCD), inventory.Machine{Boot: byMedia, Arch: inventory.ARM64}, LoaderARM64},
		{with(), inventory.Machine{SecureBoot: true, Boot: inventory.Boot{Loader: string(inventory.DigestOf(nil))}}, ""},
	} {
		got := tc.have.Lack(&tc.m)
		if got != tc.want {
			t.Errorf("%v lack %q for %+v, want %q", tc.have.Names(), got, tc.m, tc.want)
		}
		if got != "" && !strings.Contains(LoaderCure(got), "setup.sh loaders") {
			t.Errorf("%s: %s", got, LoaderCure(got))
		}
	}
}

func TestLoadersPreferTheEmbeddedOnes(t *testing.T) {
	l, err := openLoaders(
		fstest.MapFS{"snponly.efi": {Data: []byte("embedded")}, "README": {Data: []byte("x")}},
		fstest.MapFS{
			"usr/lib/ipxe/snponly.efi": {Data: []byte("installed")},
			"boot/ipxe.efi":            {Data: []byte("full")},
		})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"ipxe-amd64.efi", "snponly.efi"}, l.Names()); diff != "" {
		t.Error(diff)
	}
	if got := l.From("snponly.efi") + " " + l.From("ipxe-amd64.efi"); got != "embedded /boot/ipxe.efi" {
		t.Errorf("came from %s", got)
	}
	if b, err := fs.ReadFile(l, "snponly.efi"); err != nil || string(b) != "embedded" {
		t.Errorf("read %q, %v", b, err)
	}
	want := "find loaders: missing undionly.kpxe (BIOS machines cannot netboot), ipxe-arm64.efi (UEFI arm64 machines cannot netboot): " +
		"run `sudo ./setup.sh loaders` and build again, or `apt-get install ipxe` on this machine; then restart recast serve"
	if err := l.Missing(); err == nil || err.Error() != want {
		t.Errorf("Missing = %v\nwant %s", err, want)
	}
	if err := fstest.TestFS(l, "snponly.efi", "ipxe-amd64.efi"); err != nil {
		t.Error(err)
	}
	if _, err := fs.ReadFile(l, "README"); err == nil {
		t.Error("serves README")
	}
}

// Boards that load files of their own by their own names are told apart from a PC
// that is set up wrongly.
func TestFirmwareWithoutALoaderIsToldWhatToDo(t *testing.T) {
	for arch, want := range map[Firmware]string{
		FirmwareRaspberryBoot: "no loader for the boot code of a Raspberry Pi: put UEFI firmware for it on its card",
		FirmwareARM64UBoot:    "no loader for arm64 U-Boot: let it boot by EFI",
		FirmwareItanium:       "no loader for Itanium: boot it in another mode",
	} {
		c := Client{Arch: arch, Loader: LoaderFirmware}
		if why := (Boot{}).Explain(c, Spec{Kind: SpecRamdisk}); !strings.HasPrefix(why, want) {
			t.Errorf("%q; want %q…", why, want)
		}
		if file, ok := (Boot{}).Bootfile(c, Spec{Kind: SpecRamdisk}, netip.MustParseAddr("10.20.0.2"), 8080); ok {
			t.Errorf("%s gets %q", arch, file)
		}
	}
}
