package main

import (
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"recast/inventory"
	"recast/ipxe"
	"recast/web"
)

type alwaysRamdisk struct{}

func (alwaysRamdisk) BootSpec(context.Context, ipxe.Client) (ipxe.Spec, error) {
	return ipxe.Spec{Kind: ipxe.SpecRamdisk, Machine: "m1", Kernel: web.RamdiskPath + "vmlinuz", Initrds: []string{web.RamdiskPath + "initrd.img"}}, nil
}

// Everything that the signed GRUB needs is there by TFTP, under the names that its
// configuration has, and nothing else of the server's.
func TestGRUBFindsItsConfigurationAndTheRamdiskByTFTP(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"vmlinuz", "initrd.img", "ramdisk.json"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("content of "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	turns := &ipxe.Turns{Max: 1}
	s := &server{config: config{Ramdisk: dir}, web: &web.Server{Scripts: &ipxe.Handler{Booter: alwaysRamdisk{}, Turns: turns}}}
	first, second := netip.MustParseAddr("10.20.0.15"), netip.MustParseAddr("10.20.0.16")
	read := func(name string, from netip.Addr) string {
		t.Helper()
		f, err := s.findFile(t.Context(), name, from)
		if err != nil || f == nil {
			return ""
		}
		defer f.Close()
		b, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	if text := read("grub/grub.cfg", first); !strings.Contains(text, "configfile /grub/grub.cfg-01-$net_default_mac/0\n") {
		t.Errorf("the first configuration:\n%s", text)
	}
	const mine = "grub/grub.cfg-01-52:54:00:00:00:05/0"
	text := read(mine, first)
	for _, line := range []string{"if linux /boot/ramdisk/vmlinuz ; then", "  if initrd /boot/ramdisk/initrd.img ; then boot; fi"} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}
	for _, name := range []string{"vmlinuz", "initrd.img"} {
		if got := read("boot/ramdisk/"+name, first); got != "content of "+name {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, name := range []string{"boot/ramdisk/ramdisk.json", "boot/ramdisk/", "boot/ramdisk/../key.age", "boot/ramdisk/vmlinuz/..", "operator.token", "grub/", ""} {
		if got := read(name, first); got != "" {
			t.Errorf("%q is served: %q", name, got)
		}
	}
	// Its turn ends with the last byte of the ramdisk, over TFTP as over HTTP.
	if text := read(mine, second); !strings.Contains(text, "waits for its turn") {
		t.Errorf("the second gets\n%s", text)
	}
	whole := inventory.Observation{Kind: inventory.SawTFTP, Remote: first, Detail: "boot/ramdisk/initrd.img", Bytes: 21, Size: 21}
	for name, tc := range map[string]struct {
		change func(*inventory.Observation)
		want   bool
	}{
		"whole":       {func(*inventory.Observation) {}, true},
		"in part":     {func(o *inventory.Observation) { o.Bytes = 20 }, false},
		"broken off":  {func(o *inventory.Observation) { o.Error = "no answer" }, false},
		"size only":   {func(o *inventory.Observation) { o.Asked = true }, false},
		"the kernel":  {func(o *inventory.Observation) { o.Detail = "boot/ramdisk/vmlinuz" }, false},
		"not by TFTP": {func(o *inventory.Observation) { o.Kind = inventory.SawFile }, false},
	} {
		o := whole
		if tc.change(&o); fetched(o) != tc.want {
			t.Errorf("%s: fetched is %v", name, !tc.want)
		}
	}
}
