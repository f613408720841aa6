package image

import (
	"bytes"
	"debug/elf"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Module is a kernel module as the ramdisk's index tells of it: everything
// that the agent needs to load it without depmod's tables.
type Module struct {
	Path    string   `json:"path"` // in the ramdisk: /lib/modules/…/e1000e.ko
	Depends []string `json:"depends,omitempty"`
	// Pre and Post are the soft dependencies: loaded before and after if they load.
	Pre      []string `json:"pre,omitempty"`
	Post     []string `json:"post,omitempty"`
	Aliases  []string `json:"aliases,omitempty"`  // patterns of modalias, and plain names
	Firmware []string `json:"firmware,omitempty"` // files it may ask for
}

// ModuleIndex is /lib/modules/modules.json in the ramdisk. Names are written
// with underscores, as /proc/modules has them.
type ModuleIndex struct {
	Kernel  string            `json:"kernel"`
	Modules map[string]Module `json:"modules"`
	// Load names what no device asks for: file systems and character sets, since
	// the kernel finds no modprobe in the ramdisk.
	Load []string `json:"load"`
}

// readModule reads the .modinfo section of a kernel object: NUL-separated
// key=value pairs (include/linux/module.h).
func readModule(ko []byte) (Module, error) {
	f, err := elf.NewFile(bytes.NewReader(ko))
	if err != nil {
		return Module{}, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return Module{}, fmt.Errorf("it has no .modinfo")
	}
	if section.Size > uint64(len(ko)) {
		return Module{}, fmt.Errorf("its .modinfo of %d bytes is larger than the file", section.Size)
	}
	info, err := section.Data()
	if err != nil {
		return Module{}, err
	}
	return parseModinfo(info), nil
}

func parseModinfo(info []byte) Module {
	var m Module
	for pair := range bytes.SplitSeq(info, []byte{0}) {
		key, value, _ := strings.Cut(string(pair), "=")
		switch key {
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name != "" {
					m.Depends = append(m.Depends, moduleName(name))
				}
			}
		case "alias":
			m.Aliases = append(m.Aliases, value)
		case "firmware":
			m.Firmware = append(m.Firmware, value)
		case "softdep":
			list := &m.Pre
			for word := range strings.FieldsSeq(value) {
				switch word {
				case "pre:":
					list = &m.Pre
				case "post:":
					list = &m.Post
				default:
					*list = append(*list, moduleName(word))
				}
			}
		}
	}
	return m
}

// moduleName is the name that the kernel gives the module in file.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// chooseModules takes the wanted modules out of all, with everything that they
// depend on, and resolves their dependencies to names that are there. absent
// are wanted ones that the kernel does not have, as a module or built in.
func chooseModules(all map[string]Module, builtin map[string]bool, wanted []string) (chosen map[string]Module, absent []string, err error) {
	// A soft dependency may name an alias: "crct10dif" stands for every
	// implementation of that checksum.
	byAlias := map[string][]string{}
	for name, m := range all {
		for _, a := range m.Aliases {
			a = strings.ReplaceAll(a, "-", "_")
			byAlias[a] = append(byAlias[a], name)
		}
	}
	resolve := func(name string) []string {
		if _, ok := all[name]; ok {
			return []string{name}
		}
		if builtin[name] {
			return nil
		}
		return slices.Sorted(slices.Values(byAlias[name]))
	}
	chosen = map[string]Module{}
	var take func(name string) error
	take = func(name string) error {
		if _, ok := chosen[name]; ok {
			return nil
		}
		m := all[name]
		chosen[name] = m // before its dependencies: soft ones may go in circles
		var hard []string
		for _, d := range m.Depends {
			if builtin[d] {
				continue
			}
			if _, ok := all[d]; !ok {
				return fmt.Errorf("module %q depends on %q, which the kernel package does not have", name, d)
			}
			hard = append(hard, d)
		}
		m.Depends = hard
		m.Pre, m.Post = resolveAll(m.Pre, name, resolve), resolveAll(m.Post, name, resolve)
		chosen[name] = m
		for _, d := range slices.Concat(m.Depends, m.Pre, m.Post) {
			if err := take(d); err != nil {
				return err
			}
		}
		return nil
	}
	for _, w := range wanted {
		name := moduleName(w)
		if _, ok := all[name]; !ok {
			if !builtin[name] {
				absent = append(absent, name)
			}
			continue
		}
		if err := take(name); err != nil {
			return nil, nil, err
		}
	}
	return chosen, absent, nil
}

func resolveAll(names []string, self string, resolve func(string) []string) []string {
	var out []string
	for _, n := range names {
		for _, r := range resolve(n) {
			if r != self && !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

// storageModules, networkModules and fileModules are the declared set.
var (
	storageModules = []string{
		"ahci", "ata_piix", "ata_generic", "nvme", "vmd", "sd_mod",
		"virtio_pci", "virtio_blk", "virtio_scsi", "vmw_pvscsi", "hv_storvsc", "xen_blkfront",
		"megaraid_sas", "mpt3sas", "mpi3mr", "mptsas", "mptspi", "hpsa", "smartpqi", "aacraid",
		"isci", "pm80xx", "mvsas", "arcmsr",
	}
	networkModules = []string{
		"virtio_net", "vmxnet3", "hv_netvsc", "xen_netfront", "ena",
		"e1000", "e1000e", "igb", "igc", "ixgbe", "i40e", "iavf", "ice",
		"tg3", "broadcom", "bnx2", "bnx2x", "bnxt_en", "mlx4_en", "mlx5_core",
		"r8169", "8139cp", "sfc", "qede", "cxgb4", "be2net", "enic", "atlantic",
		"8021q", // loaded where the network has a VLAN
	}
	fileModules = []string{
		"vfat", "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8", "isofs", "efivarfs",
		"af_packet", // the agent listens for LLDP
	}
	// consoleModules load when the agent says where to.
	consoleModules = []string{"netconsole"}
)

// DefaultModules is the set that a ramdisk is built with when none is named.
func DefaultModules() []string {
	return slices.Concat(storageModules, networkModules, fileModules, consoleModules)
}
