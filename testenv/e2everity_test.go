package testenv

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// verityWord has a machine read a file of its root that nothing else reads, and tell what
// came of it.
const verityWord = `#!/bin/sh
echo "arguments: $(cat /proc/cmdline)"
echo "root is $(sed -n 's,^\([^ ]*\) / ext4 .*,\1,p' /proc/mounts)"
if cat /` + osVerityProbe + ` >/dev/null; then echo "probe: whole"; else echo "probe: refused, $(dmesg | grep 'verity.*corrupted' | head -n 1)"; fi
`

// TestVerityRootOnRealFirmware: the gate of a machine whose root dm-verity protects repairs
// the tree and does not look at the data; a byte of that which was flipped, the machine's
// kernel refuses to read.
func TestVerityRootOnRealFirmware(t *testing.T) {
	if os.Getenv("RECAST_LONG") == "" {
		t.Skip("boots machines for minutes: only where RECAST_LONG is set")
	}
	const name = "uefi"
	s := &gateStory{story: newStory(t, storySetup{Takes: 15 * time.Minute, Machines: []RackMachine{{Name: name, Firmware: FirmwareUEFI, BMC: BMCRedfish, NetworkFirst: true}}})}
	var err error
	s.img, err = BuildOS(t.Context(), OSOptions{Kind: OSTiny, CacheDir: s.parts.cache, KernelDeb: s.parts.kernel, AgentBin: s.parts.agent, Variant: "verity", Verity: true})
	s.must(err)
	s.ready(s.img)
	var images []struct {
		Verity []struct {
			Data, Tree      int
			RootHash, Wrong string
		}
	}
	s.ask(&images, "get", "images")
	hash := ""
	for _, v := range images[0].Verity {
		if v.Wrong == "" && v.Data == 3 && v.Tree == 5 {
			hash = v.RootHash
		}
	}
	if hash == "" {
		t.Fatalf("no tree of the root was found: %+v", images)
	}
	const kernel = "{partition: boot, kernel: /vmlinuz, initrd: /initrd, args: [quiet, panic=10, net.ifnames=0, by=kexec%s]}"
	d := RackDeclare{Image: s.img.Digest, UserData: verityWord, Immutable: "[2, boot]", Verity: "{" + osTinyName + ": " + osVerityTree + "}",
		Kernel: fmt.Sprintf(kernel, ""), MaxFailures: "100%", Spec: "  boot: {every: gate, onMismatch: repair}\n  evidence: {minimum: read-back}\n"}
	s.declare(d)
	if p := s.plan("--erase", name); len(p.Entries) != 1 || !strings.Contains(p.Entries[0].Blocked, "the args of its boot do not give the kernel the root hash "+hash) {
		t.Errorf("the plan says %+v", p.Entries)
	}
	d.Kernel = fmt.Sprintf(kernel, ", roothash="+hash)
	s.deploy(d)
	// The first start is by the disk's own boot loader.
	if text := s.says(name, 0, `(?s)root is ([^\r\n]*)\r?\n(probe: [^\r\n]*)`, time.Minute); text[1] != "/dev/mapper/root" || text[2] != "probe: whole" {
		t.Errorf("as it was written its system says %q", text[1:])
	}

	raw, err := os.ReadFile(s.img.Path)
	s.must(err)
	probe := int64(bytes.Index(raw, fmt.Appendf(nil, osVerityProbeLine, 2000)))
	if probe < osRootStart {
		t.Fatal("the probe does not stand in the image's root")
	}
	boot := func(n int, change func()) []string {
		t.Helper()
		s.recast("power", "off", name)
		s.await(name, "off", time.Minute, func(storyView) bool { return !s.Node(name).Powered() })
		change()
		reports, here := s.count(name, s.begun, "the system reports generation"), s.here(name)
		s.recast("power", "on", name)
		s.until("it is handed over and reports itself", 6*time.Minute, func() bool {
			return s.count(name, s.begun, "handed over by kexec: /vmlinuz ") == n && s.count(name, s.begun, "the system reports generation") > reports
		})
		text := s.says(name, here, `(?s)arguments: ([^\r\n]*)\r?\nroot is ([^\r\n]*)\r?\n.*(probe: [^\r\n]*)`, time.Minute)[1:]
		t.Log(text)
		if !strings.Contains(text[0], "by=kexec roothash="+hash) || text[1] != "/dev/mapper/root" {
			t.Errorf("its system says %q", text)
		}
		return text
	}
	if text := boot(1, func() {
		s.flip(s.Node(name).Disks[0].Path, probe)
		_, err = s.Tamper(name, osVerityTree, 5000)
		s.must(err)
	}); !strings.HasPrefix(text[2], "probe: refused, ") || !strings.Contains(text[2], "is corrupted") {
		t.Errorf("with a byte of its data flipped its system says %q", text)
	}
	if s.count(name, s.begun, osVerityTree+" 1 of its blocks, the first at byte 4096; may write 1 blocks") != 1 {
		t.Error("the repair of the tree is not on the timeline")
	}
	v := s.await(name, "active", time.Minute, func(v storyView) bool { return v.Status.Phase == "active" && v.Status.Health == "healthy" })
	if e := v.Status.Evidence; e.Level != "read-back" || !strings.Contains(e.Detail, "root hash "+hash[:12]) || len(v.Status.Findings) > 0 {
		t.Errorf("evidence %+v, findings %q", e, v.Status.Findings)
	}
	s.recast("release", name, "--repair")
	if text := boot(2, func() {}); text[2] != "probe: whole" {
		t.Errorf("after its repair its system says %q", text)
	}
	if s.count(name, s.begun, "by the word of root@127.0.0.1") != 1 {
		t.Error("the repair of the data is not on the timeline")
	}
	for _, l := range s.timeline(name) {
		if l.Kind == "step" {
			t.Log(l.Text)
		}
	}
}
