"""Many runs: answers, scores, comparison."""
