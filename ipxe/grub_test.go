package ipxe

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

func TestGRUBConfigurationsWhole(t *testing.T) {
	c := Client{MAC: "52:54:00:00:00:05"}
	for _, tc := range []struct {
		name string
		spec Spec
		try  int
		want string
	}{
		{"ramdisk", Spec{Kind: SpecRamdisk, Machine: "r1u05", Reason: "deploy, attempt 1", Trace: "1d44f94068682d44", Kernel: "/boot/ramdisk/vmlinuz",
			Initrds: []string{"/boot/ramdisk/initrd.img", "/boot/ramdisk/firmware"}, Args: []string{"console=ttyS0,115200n8", "recast.nonce=ab;12"}}, 2, `echo 'recast: trace 1d44f94068682d44'
echo 'recast: r1u05: starting the ramdisk: deploy, attempt 1'
if linux /boot/ramdisk/vmlinuz 'console=ttyS0,115200n8' 'recast.nonce=ab;12' ; then
  if initrd /boot/ramdisk/initrd.img /boot/ramdisk/firmware ; then boot; fi
fi
echo 'recast: the ramdisk did not start'
echo 'recast: asking again in 8 s, then 10 times at most until a restart (3)'
sleep 8
configfile /grub/grub.cfg-01-52:54:00:00:00:05/3
echo 'recast: the server does not answer'
`},
		{"after the last try", Spec{Kind: SpecRamdisk, Machine: "r1u05", Kernel: "/k", Initrds: []string{"/i"}}, 9, `echo 'recast: r1u05: starting the ramdisk'
if linux /k ; then
  if initrd /i ; then boot; fi
fi
echo 'recast: the ramdisk did not start'
echo 'recast: giving up; restarting'
reboot
`},
		{"local disk", Spec{Kind: SpecLocal, Machine: "r1u05", Reason: "it's $active"}, 0, `echo 'recast: r1u05: starting the local disk: it.s .active'
for file in /EFI/BOOT/BOOTX64.EFI /EFI/debian/shimx64.efi /EFI/debian/grubx64.efi /EFI/ubuntu/shimx64.efi /EFI/redhat/shimx64.efi /EFI/rocky/shimx64.efi /EFI/almalinux/shimx64.efi /EFI/centos/shimx64.efi /EFI/fedora/shimx64.efi /EFI/opensuse/shim.efi /EFI/sles/shim.efi /EFI/Microsoft/Boot/bootmgfw.efi; do
  if search --no-floppy --file --set=root $file; then
    if chainloader $file; then boot; fi
  fi
done
echo 'recast: no disk has a loader that starts'
exit
`},
		{"local disk by exit", Spec{Kind: SpecLocal, Local: inventory.LocalExit, Machine: "r1u05"}, 0, "echo 'recast: r1u05: starting the local disk'\nexit\n"},
	} {
		got, err := RenderGRUB(tc.spec, c, tc.try)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tc.name, diff)
		}
	}
	first := GRUBConfig()
	if !strings.HasPrefix(first, "set pager=0\nconfigfile /grub/grub.cfg-01-$net_default_mac/0\n") || !strings.HasSuffix(first, "sleep 64\nreboot\n") {
		t.Errorf("the first configuration is\n%s", first)
	}
}

func TestGRUBConfigurationsAreFoundByTheMachinesAddress(t *testing.T) {
	var asked []Client
	var seen []string
	var fail error
	h := &Handler{
		Booter: booterFunc(func(c Client) (Spec, error) {
			asked = append(asked, c)
			return Spec{Kind: SpecRamdisk, Machine: "r1u05", Kernel: "/k", Initrds: []string{"/i"}}, fail
		}),
		Observe: func(o inventory.Observation) { seen = append(seen, string(o.Kind)+" "+o.Detail) },
		Turns:   &Turns{Max: 1},
	}
	remote := netip.MustParseAddr("10.20.0.15")
	for name, want := range map[string]string{
		"grub/grub.cfg":                           "set pager=0",
		"grub/grub.cfg-01-52:54:00:00:00:05/0":    "echo 'recast: r1u05: starting the ramdisk'",
		"grub/grub.cfg-01-52-54-00-AB-00-05":      "echo 'recast: r1u05: starting the ramdisk'",
		"grub/grub.cfg-01-52:54:00:00:00:05/11":   "",
		"grub/grub.cfg-01-52:54:00:00:00:05/-1":   "",
		"grub/grub.cfg-01-52:54:00:00:00:05:06/0": "",
		"grub/grub.cfg-01-$net_default_mac/0":     "",
		"grub/grub.cfg-0A14000F":                  "",
		"grub/x86_64-efi/command.lst":             "",
		"grubx64.efi":                             "",
	} {
		text, ok := h.GRUB(t.Context(), name, remote)
		if line, _, _ := strings.Cut(text, "\n"); ok != (want != "") || line != want {
			t.Errorf("%s: %v, %q; want %q", name, ok, line, want)
		}
	}
	for _, c := range asked {
		if c.Loader != LoaderGRUB || c.Remote != remote || c.MAC == "" {
			t.Errorf("asked for %+v", c)
		}
	}
	if diff := cmp.Diff([]string{"boot-script ramdisk", "boot-script ramdisk"}, seen); diff != "" {
		t.Error(diff)
	}
	text, _ := h.GRUB(t.Context(), "grub/grub.cfg-01-52:54:00:00:00:05/3", netip.MustParseAddr("10.20.0.16"))
	if !strings.Contains(text, "waits for its turn") || strings.Contains(text, "linux") || !strings.Contains(text, "configfile /grub/grub.cfg-01-52:54:00:00:00:05/3\n") {
		t.Errorf("the second machine gets\n%s", text)
	}
	fail = errors.New("secret path /var/lib/recast")
	text, _ = h.GRUB(t.Context(), "grub/grub.cfg-01-52:54:00:00:00:05/3", remote)
	if !strings.HasPrefix(text, "echo 'recast: no boot decision yet: the server is not ready'\n") || !strings.Contains(text, "/4\n") || strings.Contains(text, "/var/lib") {
		t.Errorf("without an answer:\n%s", text)
	}
}

func TestSecureBootIsOfferedNothingUnsigned(t *testing.T) {
	for _, spec := range []Spec{
		{Kind: SpecRamdisk, SecureBoot: true}, {Kind: SpecLocal, Local: inventory.LocalGRUB, SecureBoot: true},
		{Kind: SpecRamdisk, SecureBoot: true, Loader: inventory.LoaderIPXE}, {Kind: SpecRamdisk, SecureBoot: true, Loader: inventory.LoaderSNPOnly},
	} {
		for arch := range Firmware(256) {
			for _, kind := range []LoaderKind{LoaderFirmware, LoaderHTTP} {
				file, ok := Boot{}.Bootfile(Client{Arch: arch, Loader: kind}, spec, server, 8080)
				if ok && file != LoaderShimAMD64 {
					t.Errorf("%s, %s, %+v: %s", arch, kind, spec, file)
				}
			}
		}
	}
	spec := Spec{Kind: SpecRamdisk, SecureBoot: true}
	if file, ok := (Boot{}).Bootfile(Client{Arch: 7, Loader: LoaderFirmware}, spec, server, 8080); !ok || file != "shimx64.efi" {
		t.Errorf("PXE: %q", file)
	}
	if why := (Boot{}).Explain(Client{Arch: 16, Loader: LoaderHTTP}, spec); !strings.Contains(why, "HTTP Boot") {
		t.Errorf("HTTP Boot: %q", why)
	}
	only := Boot{Have: func(name string) bool { return name == LoaderShimAMD64 }}
	if why := only.Explain(Client{Arch: 7, Loader: LoaderFirmware}, spec); !strings.Contains(why, "grubx64.efi") || !strings.Contains(why, "grub-efi-amd64-signed") {
		t.Errorf("shim without GRUB: %q", why)
	}
}
