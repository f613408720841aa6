package pack

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func regionLayout() Layout {
	return Layout{Scheme: SchemeGPT, Partitions: []Partition{
		{Number: 1, Type: "t1", GUID: "g1", Name: "esp", Start: 1 << 20, End: 2 << 20},
		{Number: 3, Type: "t2", GUID: "g3", Name: "root", Start: 2 << 20, End: 4 << 20},
		{Number: 4, Type: "t2", GUID: "g4", Name: "", Start: 4 << 20, End: 5 << 20},
	}}
}

func TestPartitionsAreFoundByNameAndNumber(t *testing.T) {
	l := regionLayout()
	for name, number := range map[string]int{"esp": 1, "root": 3, "3": 3, "4": 4} {
		if p, err := l.Find(name); err != nil || p.Number != number {
			t.Errorf("%q is partition %d, %v; want %d", name, p.Number, err, number)
		}
	}
	if _, err := l.Find("2"); err == nil || !strings.Contains(err.Error(), `it has 1 "esp", 3 "root", 4`) {
		t.Errorf("a number that no partition has: %v", err)
	}
	l.Partitions[1].Name = "esp"
	if _, err := l.Find("esp"); err == nil || !strings.Contains(err.Error(), "2 partitions have the name") {
		t.Errorf("a name that two have: %v", err)
	}
	if _, err := (&Layout{Scheme: SchemeNone}).Find("esp"); err == nil {
		t.Error("a partition was found where there is none")
	}
}

func TestTablesAreComparedByTheirMeaning(t *testing.T) {
	image := regionLayout()
	for what, c := range map[string]struct {
		change func(*Layout)
		want   string
	}{
		"nothing": {func(*Layout) {}, ""},
		"grown":   {func(l *Layout) { l.Partitions[2].End = 9 << 20 }, ""},
		"renamed": {func(l *Layout) { l.Partitions[2].Name = "data"; l.GUID = "other" }, ""},
		"one more": {func(l *Layout) {
			l.Partitions = append(l.Partitions, Partition{Number: 9, Start: 9 << 20, End: 10 << 20})
		}, ""},
		"in another order":  {func(l *Layout) { slices.Reverse(l.Partitions) }, ""},
		"one less":          {func(l *Layout) { l.Partitions = l.Partitions[1:] }, "partition 1 is missing"},
		"shrunk":            {func(l *Layout) { l.Partitions[2].End -= 512 }, "partition 4 ends at byte"},
		"moved":             {func(l *Layout) { l.Partitions[1].Start += 512 }, "partition 3 begins at byte"},
		"of another type":   {func(l *Layout) { l.Partitions[1].Type = "t9" }, "partition 3 has type t9"},
		"with another GUID": {func(l *Layout) { l.Partitions[1].GUID = "g9" }, "partition 3 has GUID g9"},
		"of another scheme": {func(l *Layout) { l.Scheme = SchemeMBR }, "its partition table is \"mbr\""},
	} {
		disk := regionLayout()
		c.change(&disk)
		got := image.Differs(&disk)
		if c.want == "" && got != "" || !strings.HasPrefix(got, c.want) {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

func TestPiecesCoverARegionOnceAndNothingElse(t *testing.T) {
	m := &Manifest{Size: 5*ChunkSize + 4096, Chunks: make([]Chunk, 6)}
	for _, r := range [][2]int64{{ChunkSize, 3 * ChunkSize}, {17408, ChunkSize}, {ChunkSize + 512, ChunkSize + 1024},
		{4*ChunkSize - 512, m.Size}, {0, m.Size}, {2 * ChunkSize, 2 * ChunkSize}} {
		at := r[0]
		for _, p := range m.Pieces(r[0], r[1]) {
			off, n := m.ChunkOffset(p.Chunk), int64(m.ChunkLen(p.Chunk))
			if p.Start != at || p.End <= p.Start || p.Start < off || p.End > off+n || p.Whole != (p.End-p.Start == n) {
				t.Errorf("%v: piece %+v after byte %d", r, p, at)
			}
			at = p.End
		}
		if at != r[1] {
			t.Errorf("%v: the pieces end at byte %d", r, at)
		}
	}
}

func TestOthersAreAllButThose(t *testing.T) {
	part := func(number int, name string) Partition { return Partition{Number: number, Name: name} }
	l := Layout{Scheme: SchemeGPT, Partitions: []Partition{part(1, "esp"), part(2, ""), part(3, "data"), part(4, "data"), part(5, "4"), part(15, "home")}}
	for _, tt := range []struct{ names, want, fail string }{
		{"", "esp 2 3 4 5 home", ""},
		{"home", "esp 2 3 4 5", ""},
		{"home 4 1", "2 3 5", ""},
		{"esp 2 3 4 5 15", "", ""},
		{"data", "", "2 partitions have the name"},
		{"srv", "", "there is no partition"},
		{"home 15", "", `"home" and "15" are both partition 15`},
	} {
		others, err := l.Others(strings.Fields(tt.names))
		if got := strings.Join(others, " "); got != tt.want || (err == nil) != (tt.fail == "") || err != nil && !strings.Contains(err.Error(), tt.fail) {
			t.Errorf("%q: %q, %v; want %q, %q", tt.names, got, err, tt.want, tt.fail)
		}
		if all, err := l.FindAll(others); err != nil || len(all) != len(others) {
			t.Errorf("%q: %q names %d partitions, %v", tt.names, others, len(all), err)
		}
	}
}

// A table that is suspended is none to a reader, and all there.
func TestSuspendedTableIsAllThere(t *testing.T) {
	for _, bs := range []int{512, 4096} {
		img := testImage(t, 6*MiB, bs)
		if len(img) < 512 || img[510] != 0x55 {
			copy(img[510:], []byte{0x55, 0xaa})
		}
		live := bytes.Clone(img)
		marks, size := Marks(img[:MiB])
		if len(marks) != 3 || size != bs {
			t.Fatalf("blocks of %d: %v, %d", bs, marks, size)
		}
		for n, m := range marks {
			if !bytes.HasPrefix(img[m.At:], m.Live) {
				t.Errorf("blocks of %d: at byte %d stands %q", bs, m.At, img[m.At:m.At+8])
			}
			copy(img[m.At:], m.Suspended)
			first, suspended := Resumed(img[:MiB])
			if !suspended || !bytes.Equal(first, live[:MiB]) {
				t.Errorf("blocks of %d, %d marks: not all there", bs, n+1)
			}
			if again, _ := Marks(img[:MiB]); len(again) != 3 {
				t.Errorf("blocks of %d, %d marks: they are not found again", bs, n+1)
			}
		}
		if l, _, err := ParseLayout(img[:MiB], int64(len(img))); err == nil && l.Scheme != SchemeNone {
			t.Errorf("blocks of %d: it reads as %s", bs, l.Scheme)
		}
		if first, suspended := Resumed(live[:MiB]); suspended || !bytes.Equal(first, live[:MiB]) {
			t.Errorf("blocks of %d: a live table is resumed", bs)
		}
	}
	zeros := make([]byte, MiB)
	copy(zeros[510:], []byte{0xaa, 0x55})
	if _, suspended := Resumed(zeros); suspended {
		t.Error("nothing is resumed")
	}
	if marks, _ := Marks(zeros); marks != nil {
		t.Errorf("marks of nothing: %v", marks)
	}
}
