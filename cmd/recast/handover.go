package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"recast/image"
	"recast/inventory"
	"recast/ipxe"
	"recast/tftp"
	"recast/web"
)

// bootfile is what DHCP names, and says on the timeline where it can name nothing
// although the machine shall load something.
func (s *server) bootfile(boot ipxe.Boot, port int) func(ipxe.Client, ipxe.Spec, netip.Addr) (string, bool) {
	return func(c ipxe.Client, spec ipxe.Spec, server netip.Addr) (string, bool) {
		file, ok := boot.Bootfile(c, spec, server, port)
		if why := boot.Explain(c, spec); !ok && why != "" {
			s.observe(inventory.Observation{Time: time.Now(), Kind: inventory.SawNoLoader, Network: c.Network, MAC: c.MAC, UUID: c.UUID,
				Client: string(c.Loader), Arch: uint16(c.Arch), Error: why})
		}
		return file, ok
	}
}

// loaderProblem says why a machine has no loader to boot by; "" it has one. byHTTP:
// its firmware asks by HTTP Boot alone, as far as was seen.
func (s *server) loaderProblem(m *inventory.Machine, byHTTP bool) string {
	switch m.Boot.Via {
	case inventory.BootMedia:
		return s.loaders.DiscProblem(m)
	case inventory.BootHTTP:
		byHTTP = true
	}
	if d, ok := m.Boot.LoaderDigest(); ok {
		return s.library.Problem(d, m.Arch, m.SecureBoot, byHTTP)
	}
	if m.Boot.Via == inventory.BootHTTP && m.Arch == inventory.ARM64 {
		return ipxe.Boot{Have: s.loaders.Have}.Explain(ipxe.Client{Arch: ipxe.FirmwareARM64HTTP, Loader: ipxe.LoaderHTTP}, ipxe.Spec{Kind: ipxe.SpecRamdisk})
	}
	if !m.SecureBoot && m.Boot.Via == "" {
		return ""
	}
	c := ipxe.Client{Arch: ipxe.FirmwareX64UEFI, Loader: ipxe.LoaderFirmware}
	if byHTTP {
		c = ipxe.Client{Arch: ipxe.FirmwareX64HTTP, Loader: ipxe.LoaderHTTP}
	}
	return ipxe.Boot{Have: s.loaders.Have}.Explain(c, ipxe.Spec{Kind: ipxe.SpecRamdisk, SecureBoot: m.SecureBoot})
}

// onceLoader is the path of a machine's loader below its one-time token's.
func (s *server) onceLoader(token string, m *inventory.Machine) (string, error) {
	return s.web.Scripts.OnceLoaderPath(token, m)
}

// findFile opens what TFTP serves beside loaders: GRUB's configurations, and the
// ramdisk for GRUB, which has no HTTP client.
func (s *server) findFile(ctx context.Context, name string, remote netip.Addr) (tftp.File, error) {
	if text, ok := s.web.Scripts.GRUB(ctx, name, remote); ok {
		return tftp.Bytes([]byte(text)), nil
	}
	if b, ok := s.web.Scripts.OpenTFTP(name, remote); ok {
		return tftp.Bytes(b), nil
	}
	base, ok := strings.CutPrefix(name, strings.TrimPrefix(web.RamdiskPath, "/"))
	if kernel, initrd := image.RamdiskPart(base); !ok || !kernel && !initrd {
		return nil, nil
	}
	s.web.Scripts.Turns.Fetching(remote, time.Now())
	f, err := os.Open(filepath.Join(s.ramdiskDir(), base))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open ramdisk: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open ramdisk: %w", err), f.Close())
	}
	return ramdiskFile{f, info.Size()}, nil
}

// vlanOf is the tag of the Network that an address lies in.
func (s *server) vlanOf(a netip.Addr) int {
	if n := s.engine.Set().NetworkOf(a); n != nil {
		return n.VLAN
	}
	return 0
}

type ramdiskFile struct {
	*os.File
	size int64
}

func (f ramdiskFile) Size() int64 { return f.size }

// fetched tells whether a machine has all of the ramdisk, by TFTP.
func fetched(o inventory.Observation) bool {
	name, ok := strings.CutPrefix("/"+o.Detail, web.RamdiskPath)
	_, initrd := image.RamdiskPart(name)
	return ok && initrd && o.Kind == inventory.SawTFTP && o.Error == "" && !o.Asked && o.Size > 0 && o.Bytes == o.Size
}
