package agent

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"recast/inventory"
)

// tree makes files under a new root; a value that begins with -> is a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, link := strings.CutPrefix(content, "->"); link {
			err = os.Symlink(filepath.Join(root, to), path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func diskTree(devicePath, name string, files map[string]string) map[string]string {
	dir := "sys/devices/" + devicePath + "/block/" + name
	out := map[string]string{
		"sys/block/" + name: "->" + dir, dir + "/size": "131072\n",
		dir + "/queue/logical_block_size": "512\n", dir + "/queue/physical_block_size": "4096\n", dir + "/queue/rotational": "0\n",
	}
	for k, v := range files {
		out[dir+"/"+k] = v
	}
	return out
}

func TestDiskIdentityFromSysfs(t *testing.T) {
	const scsi = "pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0"
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  inventory.DiskFacts
	}{
		{"virtio", diskTree("pci0000:00/0000:00:04.0/virtio1", "vda", map[string]string{"serial": "S-VIRTIO", "device/vendor": "0x1af4\n"}),
			inventory.DiskFacts{Name: "/dev/vda", Serial: "S-VIRTIO", ByPath: "/dev/disk/by-path/pci-0000:00:04.0"}},
		{"ata", func() map[string]string {
			m := diskTree(scsi, "sda", map[string]string{"device/vendor": "ATA     \n", "device/model": "INTEL SSDSC2KB48\n",
				"device/vpd_pg80": "\x00\x80\x00\x14        PHYF12345678", "device/wwid": "naa.55cd2e414f5a0b1c\n"})
			m["sys/class/ata_port/ata3/port_no"] = "1\n"
			return m
		}(),
			inventory.DiskFacts{Name: "/dev/sda", Vendor: "ATA", Model: "INTEL SSDSC2KB48", Serial: "PHYF12345678", HCTL: "2:0:0:0",
				WWN: "0x55cd2e414f5a0b1c", WWNWithExtension: "0x55cd2e414f5a0b1c", ByPath: "/dev/disk/by-path/pci-0000:00:1f.2-ata-1"}},
		{"raid volume", diskTree("pci0000:00/0000:3b:00.0/host0/target0:2:1/0:2:1:0", "sdb", map[string]string{"device/wwid": "naa.6588670100d40a0027b5b8f60e3f1c2d"}),
			inventory.DiskFacts{Name: "/dev/sdb", HCTL: "0:2:1:0", WWN: "0x6588670100d40a00", WWNWithExtension: "0x6588670100d40a0027b5b8f60e3f1c2d",
				WWNVendorExtension: "0x27b5b8f60e3f1c2d", ByPath: "/dev/disk/by-path/pci-0000:3b:00.0-scsi-0:2:1:0"}},
		{"nvme", func() map[string]string {
			dir := "sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1"
			return map[string]string{"sys/block/nvme0n1": "->" + dir, dir + "/size": "131072", dir + "/wwid": "eui.0025385971b00000\n", dir + "/queue/rotational": "1",
				dir + "/device/serial": "S4GENX0R000000 \n", dir + "/device/model": "SAMSUNG MZQLB \n", dir + "/queue/logical_block_size": "512", dir + "/queue/physical_block_size": "4096"}
		}(),
			inventory.DiskFacts{Name: "/dev/nvme0n1", Model: "SAMSUNG MZQLB", Serial: "S4GENX0R000000", WWN: "eui.0025385971b00000", WWNWithExtension: "eui.0025385971b00000",
				Rotational: true, ByPath: "/dev/disk/by-path/pci-0000:01:00.0-nvme-1"}},
		{"in use by LVM", diskTree("pci0000:00/0000:00:04.0/virtio1", "vda", map[string]string{"serial": "S", "vda1/holders/dm-0": ""}),
			inventory.DiskFacts{Name: "/dev/vda", Serial: "S", InUse: true, ByPath: "/dev/disk/by-path/pci-0000:00:04.0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			// What is no disk, and a card reader without a card, are left out.
			tt.files["sys/block/loop0/size"], tt.files["sys/block/sr0/size"], tt.files["sys/block/sdz/size"] = "100", "100", "0"
			h := Hardware{Root: tree(t, tt.files)}
			names := h.disks()
			if len(names) != 1 {
				t.Fatalf("disks %q", names)
			}
			tt.want.Size, tt.want.LogicalBlockSize, tt.want.PhysicalBlockSize = 64*MiB, 512, 4096
			if diff := cmp.Diff(tt.want, h.disk(names[0])); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestADiskThatCannotBeReadIsNotBlank(t *testing.T) {
	h := Hardware{Root: tree(t, diskTree("pci0000:00/0000:00:04.0/virtio1", "vda", nil))}
	f, err := h.Facts(t.Context())
	if err != nil || len(f.Disks) != 1 || !strings.HasPrefix(f.Disks[0].Holds, "cannot be read: ") {
		t.Errorf("disks %+v, error %v", f.Disks, err)
	}
}

func TestOpenDiskWantsExactlyOne(t *testing.T) {
	files := diskTree("pci0000:00/0000:00:04.0/virtio1", "vda", map[string]string{"serial": "S"})
	for k, v := range diskTree("pci0000:00/0000:00:05.0/virtio2", "vdb", map[string]string{"serial": "S"}) {
		files[k] = v
	}
	for k, v := range diskTree("pci0000:00/0000:00:06.0/virtio3", "vdc", map[string]string{"serial": "T", "holders/dm-0": ""}) {
		files[k] = v
	}
	h := Hardware{Root: tree(t, files)}
	for serial, want := range map[string]string{"S": "vda, vdb all look like", "T": "/dev/vdc is in use", "U": `is not here: disk /dev/vdc has serial "T"`} {
		_, err := h.OpenDisk(t.Context(), inventory.DiskID{Serial: serial, Size: 64 * MiB})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("serial %q: error %v, want %q", serial, err, want)
		}
	}
}

func TestMachineFactsFromSysfs(t *testing.T) {
	dev := "sys/devices/pci0000:00/0000:00:03.0/net/eth0"
	dimm := append([]byte{17, 34, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x40}, make([]byte, 20)...) // 16384 MiB
	h := Hardware{Root: tree(t, map[string]string{
		"proc/cpuinfo": "processor\t: 0\nmodel name\t: Some CPU\ncpu MHz\t\t: 2000.000\nflags\t\t: fpu sse\n\nprocessor\t: 1\n",
		"proc/meminfo": "MemTotal:       16000000 kB\nMemFree: 1 kB\n", "proc/sys/kernel/hostname": "(none)\n",
		"sys/firmware/dmi/tables/DMI": string(dimm) + "A\x00\x00" + string(dimm) + "\x00\x00" + "\x7f\x04\x00\x00\x00\x00",
		"sys/class/dmi/id/sys_vendor": "Dell Inc.\n", "sys/class/dmi/id/product_name": "PowerEdge\n", "sys/class/dmi/id/product_serial": "To Be Filled By O.E.M.\n",
		"sys/class/dmi/id/product_uuid": "4C4C4544-0042-3510\n", "sys/class/tpm/tpm0/tpm_version_major": "2\n", "sys/class/dmi/id/bios_version": "2.1\n",
		"sys/firmware/efi/efivars/SecureBoot-" + globalVariable: "\x06\x00\x00\x00\x01",
		"sys/firmware/efi/efivars/" + bootName(7):               "\x07\x00\x00\x00" + string(entryOf(inventory.AgainLabel, true, diskPath)),
		"sys/class/net/eth0":                                    "->" + dev, dev + "/address": "52:54:00:AA:00:01\n", dev + "/carrier": "1\n", dev + "/speed": "25000\n",
		dev + "/device/vendor": "0x8086\n", dev + "/device/device": "0x1592\n", "sys/bus/pci/drivers/ice/x": "", dev + "/device/driver": "->sys/bus/pci/drivers/ice",
		"sys/class/net/lo/address": "00:00:00:00:00:00\n",
	}), LLDP: func(nic string) []inventory.LLDPTLV { return []inventory.LLDPTLV{{Type: 1, Value: nic}} }}
	f, err := h.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f.CPU.Architecture, f.MissingFirmware = "", nil // this test's own kernel's
	want := inventory.Facts{
		CPU:    inventory.CPUFacts{ModelName: "Some CPU", Frequency: "2000.000", Count: 2, Flags: []string{"fpu", "sse"}},
		Memory: inventory.MemoryFacts{Total: 16000000 << 10, PhysicalMB: 32768},
		Interfaces: []inventory.NICFacts{{Name: "eth0", MAC: "52:54:00:aa:00:01", HasCarrier: true, SpeedMbps: 25000, Vendor: "0x8086", Product: "0x1592", Driver: "ice",
			LLDP: []inventory.LLDPTLV{{Type: 1, Value: "eth0"}}}},
		SystemVendor: inventory.SystemVendor{ProductName: "PowerEdge", Manufacturer: "Dell Inc.", UUID: "4c4c4544-0042-3510", Firmware: inventory.FirmwareFacts{Version: "2.1"}},
		Boot:         inventory.BootFacts{Mode: "uefi", SecureBoot: true, Again: true},
		TPM:          "2",
	}
	if diff := cmp.Diff(want, f, cmp.Comparer(func(a, b interface{ IsValid() bool }) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestHTTPBootIsToldByTheEntryThatStarted(t *testing.T) {
	mac := append([]byte{3, 11, 37, 0}, make([]byte, 33)...)
	uri := append([]byte{3, 24, 12, 0}, "http://x"...)
	end := []byte{0x7f, 0xff, 4, 0}
	for _, c := range []struct {
		name string
		path []byte
		want bool
	}{
		{"PXE", slices.Concat(mac, end), false},
		{"HTTP Boot", slices.Concat(mac, uri, end), true},
		{"HTTP Boot, the URL to come by DHCP", slices.Concat(mac, []byte{3, 24, 4, 0}, end), true},
		{"broken", []byte{3, 11, 2, 0, 3, 24, 4, 0}, false},
		{"cut", []byte{3, 24, 9, 0}, false},
		{"none", nil, false},
	} {
		vars := fakeVars{"BootCurrent-" + globalVariable: {7, 0}, "Boot0007-" + globalVariable: LoadOption{Attributes: 1, Description: "UEFI", Path: c.path}.Encode()}
		if got := byHTTPBoot(vars); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if byHTTPBoot(fakeVars{"BootCurrent-" + globalVariable: {7, 0}}) || byHTTPBoot(fakeVars{}) {
		t.Error("by HTTP Boot without an entry")
	}
}

func TestMissingFirmwareIsNamed(t *testing.T) {
	log := "<3>[ 2.1] bnx2 0000:02:00.0: Direct firmware load for bnx2/bnx2-mips-09-6.2.1b.fw failed with error -2\n" +
		"<6>[ 2.2] bnx2: loaded\n<4>[ 2.3] ice: Direct firmware load for intel/ice/ddp/ice.pkg failed with error -2\n" +
		"<3>[ 2.4] bnx2 0000:02:00.1: Direct firmware load for bnx2/bnx2-mips-09-6.2.1b.fw failed with error -2\n"
	want := []string{"bnx2/bnx2-mips-09-6.2.1b.fw", "intel/ice/ddp/ice.pkg"}
	if got := missingFirmware(log); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func FuzzDMI(f *testing.F) {
	f.Add([]byte{17, 34, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64})
	f.Fuzz(func(t *testing.T, b []byte) {
		if installedMiB(b) < 0 {
			t.Error("negative memory")
		}
		vpdSerial(b)
	})
}

func TestModuleAliases(t *testing.T) {
	for _, tt := range []struct {
		pattern, alias string
		want           bool
	}{
		{"pci:v00008086d000010D3sv*sd*bc*sc*i*", "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00", true},
		{"pci:v00008086d000010D3sv*sd*bc*sc*i*", "pci:v00008086d000010D4sv00008086sd00000000bc02sc00i00", false},
		{"pci:v*d*sv*sd*bc01sc06i01*", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01", true},
		{"virtio:d00000001v*", "virtio:d00000001v00001AF4", true},
		{"acpi*:PNP0A0[38]:*", "acpi:PNP0A08:PNP0A03:", true},
		{"acpi*:PNP0A0[0-7]:*", "acpi:PNP0A08:", false},
		{"scsi:t-0x00*", "scsi:t-0x00", true},
		{"a?c", "abc", true}, {"a?c", "ac", false}, {"*", "", true}, {"a[", "ab", false}, {"", "a", false},
	} {
		if got := glob(tt.pattern, tt.alias); got != tt.want {
			t.Errorf("glob(%q, %q) = %t", tt.pattern, tt.alias, got)
		}
	}
}

func TestModulesLoadAfterWhatTheyNeed(t *testing.T) {
	root := tree(t, map[string]string{"devices/a/modalias": "pci:v1\n"})
	index := filepath.Join(root, "modules.json")
	b, _ := json.Marshal(moduleIndex{Load: []string{"vfat"}, Modules: map[string]moduleInfo{
		"vfat": {Path: "/m/vfat.ko", Depends: []string{"fat"}}, "fat": {Path: "/m/fat.ko"},
		"nic": {Path: "/m/nic.ko", Depends: []string{"mii"}, Pre: []string{"crc"}, Post: []string{"phy"}, Aliases: []string{"pci:v*"}},
		"mii": {Path: "/m/mii.ko"}, "crc": {Path: "/m/crc.ko"}, "phy": {Path: "/m/phy.ko"},
		"late": {Path: "/m/late.ko", Aliases: []string{"virtio:d1"}}, "absent": {Path: "/m/absent.ko", Aliases: []string{"pci:v*"}},
	}})
	if err := os.WriteFile(index, b, 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := openModules(index, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	var loaded []string
	m.load = func(path, _ string) error {
		loaded = append(loaded, strings.TrimSuffix(filepath.Base(path), ".ko"))
		switch path {
		case "/m/nic.ko": // its device turns up once it is loaded
			os.MkdirAll(root+"/devices/b", 0o755)
			return os.WriteFile(root+"/devices/b/modalias", []byte("virtio:d1\n"), 0o644)
		case "/m/absent.ko":
			return unix.ENODEV
		}
		return nil
	}
	m.base()
	if !m.coldplug(root+"/devices") || m.coldplug(root+"/devices") {
		t.Error("the first look must find something new, the second nothing")
	}
	if want := "fat vfat absent mii crc nic phy late"; strings.Join(loaded, " ") != want {
		t.Errorf("loaded %q, want %q", strings.Join(loaded, " "), want)
	}
}

func TestInstalledSystemReportsOnce(t *testing.T) {
	s := startServer(t)
	fails := 2
	s.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if fails--; fails >= 0 {
			w.WriteHeader(http.StatusBadGateway)
		}
		return fails >= 0
	}
	cert := s.TLS.Certificates[0].Certificate[1]
	for _, ca := range []string{s.ca.String(), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))} {
		dir := t.TempDir()
		b, _ := json.Marshal(reportConfig{URL: s.URL, CA: ca, Token: "token-1", Machine: "m1", Generation: someCA, Rendered: someCA, Write: "e.3"})
		os.WriteFile(filepath.Join(dir, reportFile), b, 0o600)
		fails = 1
		vars := fakeVars{bootOrder: order(3, 0), bootCurrent: order(3), secureBoot: {1}}
		if err := ReportBooted(t.Context(), dir, vars, time.Minute, t.Logf); err != nil {
			t.Fatal(err)
		}
		got := s.booted[len(s.booted)-1]
		boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if got.Machine != "m1" || got.Generation != someCA || got.Rendered != someCA || got.Write != "e.3" || got.BootOrder != "03000000" || got.BootCurrent != "0300" || got.SecureBoot != "01" || got.BootID != strings.TrimSpace(string(boot)) {
			t.Errorf("reported %+v", got)
		}
	}
	if len(s.booted) != 2 {
		t.Errorf("%d reports", len(s.booted))
	}
	dir := t.TempDir()
	b, _ := json.Marshal(reportConfig{URL: s.URL, CA: s.ca.String(), Token: "stale", Machine: "m1"})
	os.WriteFile(filepath.Join(dir, reportFile), b, 0o600)
	refused := new(StatusError)
	if err := ReportBooted(t.Context(), dir, VarFS(t.TempDir()), time.Minute, t.Logf); !errors.As(err, &refused) || refused.Code != http.StatusUnauthorized {
		t.Errorf("error %v, want a refusal at once", err)
	}
}

func FuzzReportConfig(f *testing.F) {
	f.Add([]byte(`{"url":"https://10.0.0.1:8443","ca":"` + someCA.String() + `","token":"t","machine":"m"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, ca, err := parseReportConfig(b); err == nil && (ca == "" && c.CA != "" || c.Token == "") {
			t.Errorf("%q gives %+v", b, c)
		}
	})
}

// BenchmarkWrite compares the agent's write path with what one would type, on
// the same image, disk and server, turn by turn: "bare" as in many a script,
// "checked" doing what the agent does too, hashing what arrives and what the
// disk gives back after the flush. x-bare and x-checked are how many times as
// fast as those the agent was.
func BenchmarkWrite(b *testing.B) {
	for _, tool := range []string{"bash", "curl", "zstd", "dd", "sha256sum"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skipf("needs %s (apt-get install %s)", tool, tool)
		}
	}
	const size = 256 * MiB
	p := packImage(b, gptImage(b, size, 1))
	s := serveBytes(b, p)
	fetch := fmt.Sprintf("set -o pipefail; curl -fsS %s/%s | zstd -dc", s.URL, p.m.Pack.Hex())
	const write = "dd of=$0 bs=4M conv=notrunc,fsync iflag=fullblock status=none"
	run := func(line string) func(Disk, string) error {
		return func(_ Disk, path string) error {
			out, err := exec.CommandContext(b.Context(), "bash", "-c", line, path).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			if n := strings.Count(string(out), p.m.Digest.Hex()); n != strings.Count(line, "sha256sum") {
				return fmt.Errorf("the image's digest came out %d times: %s", n, out)
			}
			return nil
		}
	}
	ways := []func(d Disk, path string) error{
		func(d Disk, _ string) error {
			w := testWork(p, d, nil, s.URL)
			w.Workers = 0
			_, err := Write(b.Context(), w)
			return err
		},
		run(fetch + " | " + write),
		run(fmt.Sprintf("%s | tee >(sha256sum >&2) | %s && dd if=$0 bs=4M count=%d iflag=direct status=none | sha256sum", fetch, write, size/(4*MiB))),
	}
	took := make([]time.Duration, len(ways))
	const turns = 3
	b.SetBytes(turns * size)
	for b.Loop() {
		for k := range turns * len(ways) {
			i := k % len(ways)
			way := ways[i]
			b.StopTimer()
			d, path := diskFile(b, size+16*MiB, 0xA5)
			if err := d.Flush(); err != nil {
				b.Fatal(err)
			}
			if i == 0 {
				b.StartTimer() // MB/s are the agent's
			}
			start := time.Now()
			if err := way(d, path); err != nil {
				b.Fatal(err)
			}
			took[i] += time.Since(start)
			b.StopTimer()
			os.Remove(path)
			b.StartTimer()
		}
	}
	b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "x-bare")
	b.ReportMetric(took[2].Seconds()/took[0].Seconds(), "x-checked")
}
