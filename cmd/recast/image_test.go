package main

import (
	"slices"
	"testing"

	"recast/image"
)

func TestWhatATreeProvesIsSaidWhereAnImageIsAdded(t *testing.T) {
	got := verityLines([]image.Verity{
		{Tree: 4, Data: 1, RootHash: "aa", Wrong: "it is another one"}, {Tree: 4, Data: 2, RootHash: "aa"}, {Tree: 4, Data: 3, RootHash: "aa", Wrong: "it is another one"},
		{Tree: 5, Data: 1, RootHash: "bb", Wrong: "it is another one"}, {Tree: 5, Data: 2, RootHash: "bb", Wrong: "it is another one"},
		{Tree: 6, Wrong: `its dm-verity tree is of "sha1": want sha256 or sha512`},
	})
	if want := []string{
		"partition 2 is proved by the dm-verity tree in partition 4: root hash aa",
		"the dm-verity tree in partition 5 proves nothing: no other partition is what it was made of",
		`the dm-verity tree in partition 6 proves nothing: its dm-verity tree is of "sha1": want sha256 or sha512`,
	}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
