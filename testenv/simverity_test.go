package testenv

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"recast/pack"
)

// simVerityTree is what veritysetup format makes of the data, with SHA-256, blocks of
// 4 KiB and no salt.
func simVerityTree(data []byte) (tree []byte, root string) {
	const block = 4096
	level := func(b []byte) (sums []byte) {
		for len(b) > 0 {
			sum := sha256.Sum256(b[:block])
			sums, b = append(sums, sum[:]...), b[block:]
		}
		return append(sums, make([]byte, (block-len(sums)%block)%block)...)
	}
	for sums := level(data); ; sums = level(sums) {
		tree = append(bytes.Clone(sums), tree...)
		if len(sums) == block {
			break
		}
	}
	top := sha256.Sum256(tree[:block])
	super := make([]byte, block)
	copy(super, "verity\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00")
	copy(super[32:], "sha256")
	binary.LittleEndian.PutUint32(super[64:], block)
	binary.LittleEndian.PutUint32(super[68:], block)
	binary.LittleEndian.PutUint64(super[72:], uint64(len(data)/block))
	return append(super, tree...), hex.EncodeToString(top[:])
}

// simVerity is an image whose root dm-verity protects: the kernel, and an entry that names
// the root hash, stand in a partition of their own.
type simVerity struct {
	raw        []byte
	hash       string
	root, tree pack.Partition
}

func newSimVerity(t *testing.T) simVerity {
	t.Helper()
	if _, err := osLook("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4 (make setup)")
	}
	const mib = pack.MiB
	v := simVerity{raw: make([]byte, 15*mib)}
	parts := []pack.Partition{{Name: "boot", Start: 1 * mib, End: 4 * mib}, {Name: "root", Start: 4 * mib, End: 12 * mib}, {Name: "root-verity", Start: 12 * mib, End: 13 * mib}, {Name: "var", Start: 13 * mib, End: 14 * mib}}
	for i := range parts {
		parts[i].Type, parts[i].GUID = pack.TypeLinux.String(), fmt.Sprintf("AAAAAAAA-2222-4333-8444-55555555555%d", i)
	}
	v.root, v.tree = parts[1], parts[2]
	first, last, err := pack.FormatGPT(int64(len(v.raw)), 512, pack.MustGUID("11111111-2222-4333-8444-555555555555"), parts)
	simMust(t, err)
	copy(v.raw, first)
	copy(v.raw[14*mib:], last)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(v.raw[v.root.Start : v.root.End-2*mib]) // and a hole
	tree, hash := simVerityTree(v.raw[v.root.Start:v.root.End])
	copy(v.raw[v.tree.Start:], tree)
	v.hash = hash

	dir := t.TempDir()
	files := filepath.Join(dir, "files")
	simMust(t, os.Mkdir(files, 0o755))
	simMust(t, os.WriteFile(filepath.Join(files, "vmlinuz"), bytes.Repeat([]byte("kernel"), 50_000), 0o644))
	simMust(t, os.WriteFile(filepath.Join(files, "entry.conf"), []byte("options ro roothash="+hash+"\n"), 0o644))
	path := filepath.Join(dir, "image")
	simMust(t, os.WriteFile(path, v.raw, 0o644))
	simMust(t, osRun(t.Context(), "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "offset=1048576,nodiscard", "-d", files, path, "3072k"))
	v.raw, err = os.ReadFile(path)
	simMust(t, err)
	return v
}

func TestAGateReadsOfAVerityRootTheTreeAlone(t *testing.T) {
	v := newSimVerity(t)
	for _, way := range []string{"reboot", "kexec"} {
		t.Run(way, func(t *testing.T) {
			s := newSimServer(t)
			d := simDeclare{Image: s.addImage(v.raw), Immutable: "[boot]", Verity: "{root: root-verity}",
				Spec: "  boot: {every: gate, onMismatch: repair, handover: " + way + "}\n"}
			if way == "kexec" {
				d.Kernel = "{partition: boot, kernel: /vmlinuz, args: [ro, roothash=" + v.hash + "]}"
			}
			s.setSecret(simSecret, simUser+":"+simPassword)
			m := s.add(1, func(o *SimulatedOptions) { o.Sessions, o.NetworkFirst = 200, !o.UEFI })
			s.apply(d)
			s.awaitActive("m01", 60*time.Second)
			clean := simBytes(t, m)
			if !bytes.Equal(clean[v.root.Start:v.tree.End], v.raw[v.root.Start:v.tree.End]) {
				t.Fatal("root and tree were not written")
			}

			// What the gate is to repair, and what the kernel is to refuse.
			var data, tree atomic.Int64
			overlap := func(p pack.Partition, off, n int64) int64 { return max(0, min(off+n, p.End)-max(off, p.Start)) }
			start := s.restart(m, func() {
				simTamper(t, m, "root-verity", 9000)
				simTamper(t, m, "root", 5000)
				m.Disks[0].OnRead = func(off, n int64) { data.Add(overlap(v.root, off, n)); tree.Add(overlap(v.tree, off, n)) }
			})
			s.awaitReport(m, start)
			want := bytes.Clone(clean)
			want[v.root.Start+5000] ^= 0xff
			if !bytes.Equal(simBytes(t, m), want) {
				t.Error("the disk is not as it was, but for the byte of the data")
			}
			if size := v.tree.End - v.tree.Start; data.Load() != 0 || tree.Load() < size {
				t.Errorf("it read %d bytes of the data and %d of the tree, which has %d", data.Load(), tree.Load(), size)
			}
			view := s.awaitActive("m01", 10*time.Second)
			if g := view.Status.Gate; g.Verdict != "repaired" || len(g.Repairs) != 1 || g.Repairs[0].Blocks != 1 {
				t.Errorf("gate %+v", g)
			}
			if e := view.Status.Evidence; e.Level != "read-back" || !strings.Contains(e.Detail, "the gate read boot ") || !strings.Contains(e.Detail, ", root-verity ") ||
				!strings.Contains(e.Detail, "; root is proved by the kernel as it is read, root hash "+v.hash[:12]) {
				t.Errorf("evidence %+v", e)
			}
			// Only an operator's word has it read the data, once, and write what differs.
			s.must("POST", "/api/v1/machines/m01/repair", nil, nil)
			again := s.restart(m, func() { data.Store(0) })
			s.awaitReport(m, again)
			if size := v.root.End - v.root.Start; !bytes.Equal(simBytes(t, m), clean) || data.Load() < size {
				t.Errorf("the disk is as it was: %t; it read %d bytes of the data, which has %d", bytes.Equal(simBytes(t, m), clean), data.Load(), size)
			}
			again = s.restart(m, func() { data.Store(0) })
			s.awaitReport(m, again)
			if g := s.awaitActive("m01", 10*time.Second).Status.Gate; g.Verdict != "matches" || data.Load() != 0 || len(g.Repairs) != 2 || g.Repairs[1].Blocks != 1 {
				t.Errorf("gate %+v, which read %d bytes of the data", g, data.Load())
			}
			if path := strings.Join(m.path(start), " → "); strings.Contains(path, "kexec: starting /vmlinuz") != (way == "kexec") || way == "kexec" && !strings.Contains(path, "roothash="+v.hash) {
				t.Errorf("it went by %s", path)
			}
		})
	}
}

func TestAPlanRefusesAVerityRootThatProvesNothing(t *testing.T) {
	v := newSimVerity(t)
	other := v
	other.raw = bytes.Clone(v.raw)
	other.raw[v.root.Start+8192] ^= 1
	s := newSimServer(t)
	s.setSecret(simSecret, simUser+":"+simPassword)
	s.add(1, nil)
	good := simDeclare{Image: s.addImage(v.raw), Immutable: "[boot]", Verity: "{root: root-verity}", Spec: "  boot: {every: gate}\n"}
	for want, change := range map[string]func(d *simDeclare){
		"": func(*simDeclare) {},
		"root: partition root-verity: its dm-verity tree is not that of this data: the block of the partition at byte 8192 is another one": func(d *simDeclare) { d.Image = s.addImage(other.raw) },
		"root-verity: partition root: it holds no dm-verity tree":                                                                          func(d *simDeclare) { d.Verity = "{root-verity: root}" },
		"root: its root hash " + v.hash + " stands in no immutable partition":                                                              func(d *simDeclare) { d.Immutable = "[var]" },
		"root: the args of its boot do not give the kernel the root hash " + v.hash:                                                        func(d *simDeclare) { d.Kernel = "{partition: boot, kernel: /vmlinuz, args: [ro]}" },
	} {
		d := good
		change(&d)
		for _, e := range s.plan(d, "m01").Entries {
			if want == "" && e.Blocked != "" || !strings.Contains(e.Blocked, want) {
				t.Errorf("%+v: %q, want %q", d, e.Blocked, want)
			}
		}
	}
}
