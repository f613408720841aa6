package provision

import (
	"reflect"
	"strings"
	"testing"

	"recast/image"
	"recast/inventory"
	"recast/pack"
)

func TestATreeIsTakenOnlyWhereItsRootHashReachesTheKernel(t *testing.T) {
	root, usr := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
	img := image.Reader{Manifest: &pack.Manifest{Layout: pack.Layout{Scheme: pack.SchemeGPT, Partitions: []pack.Partition{
		{Number: 1, Name: "esp"}, {Number: 2, Name: "root"}, {Number: 3, Name: "root-verity"}, {Number: 4, Name: "usr"}, {Number: 5, Name: "usr-verity"}, {Number: 6, Name: "var"}}}}}
	found := []image.Verity{
		{Tree: 3, Data: 1, RootHash: root, Wrong: "it is of 8192 bytes, and the partition has 4096"},
		{Tree: 3, Data: 2, RootHash: root, Named: []int{1, 6}},
		{Tree: 3, Data: 4, RootHash: root, Wrong: "the block of the partition at byte 4096 is another one"},
		{Tree: 5, Data: 2, RootHash: usr, Wrong: "the block of the partition at byte 0 is another one"},
		{Tree: 5, Data: 4, RootHash: usr, Named: []int{6}},
		{Tree: 6, Wrong: `its dm-verity tree is of "sha1": want sha256 or sha512`},
	}
	boot := func(args ...string) *inventory.ImageBoot {
		return &inventory.ImageBoot{Partition: "esp", Kernel: "/vmlinuz", Args: args}
	}
	type m = map[string]string
	for name, tt := range map[string]struct {
		verity    m
		immutable []string
		boot      *inventory.ImageBoot
		found     []image.Verity
		want      []VerityRoot
		err       string
	}{
		"by name":          {m{"root": "root-verity"}, []string{"esp"}, nil, found, []VerityRoot{{inventory.Region{Name: "root"}, "root-verity", root}}, ""},
		"by number":        {m{"2": "3"}, []string{"1"}, nil, found, []VerityRoot{{inventory.Region{Name: "2"}, "3", root}}, ""},
		"two":              {m{"usr": "5", "root": "3"}, []string{"esp", "var"}, nil, found, []VerityRoot{{inventory.Region{Name: "root"}, "3", root}, {inventory.Region{Name: "usr"}, "5", usr}}, ""},
		"by kexec":         {m{"root": "3"}, []string{"esp"}, boot("ro", "roothash="+root), found, []VerityRoot{{inventory.Region{Name: "root"}, "3", root}}, ""},
		"in other words":   {m{"root": "3"}, []string{"esp"}, boot("verity=a,b," + strings.ToUpper(root)), found, []VerityRoot{{inventory.Region{Name: "root"}, "3", root}}, ""},
		"another's tree":   {m{"usr": "root-verity"}, []string{"esp"}, nil, found, nil, "usr: partition root-verity: its dm-verity tree is not that of this data: the block of the partition at byte 4096 is another one"},
		"no tree":          {m{"root": "usr"}, []string{"esp"}, nil, found, nil, "root: partition usr: it holds no dm-verity tree"},
		"a bad tree":       {m{"root": "var"}, []string{"esp"}, nil, found, nil, `root: partition var: its dm-verity tree is of "sha1"`},
		"no partition":     {m{"root": "hash"}, []string{"esp"}, nil, found, nil, `there is no partition "hash"`},
		"no data":          {m{"data": "3"}, []string{"esp"}, nil, found, nil, `there is no partition "data"`},
		"twice by numbers": {m{"root": "3"}, []string{"esp", "2"}, nil, found, nil, `"2" and "root" are both partition 2`},
		"one is both":      {m{"root": "3", "usr": "2"}, []string{"esp"}, nil, found, nil, `"root" and "2" are both partition 2`},
		"named in state":   {m{"usr": "usr-verity"}, []string{"esp"}, nil, found, nil, "usr: its root hash " + usr + " stands in no immutable partition"},
		"not in the args":  {m{"root": "3"}, []string{"esp"}, boot("ro", "roothash="+usr), found, nil, "root: the args of its boot do not give the kernel the root hash " + root + "; add it as the image's ramdisk reads it: roothash="},
		"one of two":       {m{"root": "3", "usr": "5"}, []string{"esp", "var"}, boot("roothash=" + root), found, nil, "usr: the args of its boot"},
		"an older recast":  {m{"root": "3"}, []string{"esp"}, nil, nil, nil, "recast image add does, again"},
		"an image without": {m{"root": "3"}, []string{"esp"}, nil, []image.Verity{}, nil, "it holds no dm-verity tree"},
	} {
		got, err := verityOf(inventory.ResolvedImage{Verity: tt.verity, Immutable: tt.immutable, Boot: tt.boot}, img.Numbers, tt.found)
		if tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) || tt.err == "" && (err != nil || !reflect.DeepEqual(got, tt.want)) {
			t.Errorf("%s: %+v, %v; want %+v, %q", name, got, err, tt.want, tt.err)
		}
	}
}
