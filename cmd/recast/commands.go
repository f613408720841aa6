package main

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// commands in the order of the help.
func commands() []*cobra.Command {
	return []*cobra.Command{
		newPlan(), newApply(), newRollback(), newFreeze(), newUnfreeze(),
		newGet(), newDescribe(), newExplain(), newCapture(),
		newPower(), newBMC(), newConsole(), newHold(),
		newRelease(),
		machineVerb("retry", "Give a failed machine another turn", "Give a failed machine, or one that waits for a word, another turn of the plan that was applied.", "gets another turn"),
		machineVerb("abort", "Stop the attempt under way", "Stop the attempt under way. A machine whose disk was not touched goes back to it.\nIts rollout starts no more machines until recast retry, or the next apply.", "aborted"),
		machineVerb("inspect", "Netboot a machine and take its inventory", "Netboot a machine, take its inventory, and let it start its disk again. Nothing is written.", "will be inspected"),
		machineVerb("adopt", "Believe what a machine's disk says recast wrote", "Netboot a machine and believe what its disk says recast wrote to it, as after the loss of the store.\nNothing is written.", "will be adopted"),
		machineVerb("trust", "Take what a machine's TPM showed last for right", "Take what a machine's TPM showed last for right: another boot chain, after a new firmware, loader\nor ramdisk, or another TPM with another board. recast describe shows which it was.", "its TPM is trusted"),
		newWipe(),
		newServe(), newDoctor(), newLab(), newSecret(), newImage(), newLoader(), newRamdisk(), newStore(), newLogin(), newVersion(), newCompletion(),
		newExitCodes(),
	}
}

// newExitCodes is a help topic: a command that only has a text.
func newExitCodes() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: fmt.Sprintf(`Scripts may rely on these exit codes:

  %d  it was done
  %d  it was not done; the reason is the last line on standard error
  %d  the command line, or the configuration it names, is wrong
  %d  plan --exit-code: there is something to do
  %d  the server refused: bad files, outdated plan, wrong token, unknown name, a state that forbids it
  %d  no server answers`, exitOK, exitError, exitUsage, exitChanges, exitRefused, exitNoServer)}
}

func decodeBody(r io.Reader, v any) error {
	if err := json.NewDecoder(r).Decode(v); err != nil {
		return fmt.Errorf("decode the server's answer: %w", err)
	}
	return nil
}
