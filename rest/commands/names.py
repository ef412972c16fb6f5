"""The subcommands: what the usage says of each, where it is, and an example of it. It imports nothing."""

USAGE = """\
rest: offline Reinforced Self-Training

  rest init DIR --source FILE --target FILE     an experiment for your text, with dev and test split off
  rest run FILE[:variant] --out DIR [flags]     the whole loop; on a half-done folder, what is missing
  rest plan FILE[:variant] --out DIR            what that is going to take: stages, samples, updates, time, disk
  rest bc FILE[:variant] --out DIR              behavioural cloning
  rest reward train FILE[:variant] --out DIR    rate samples of BC and fit the learned reward
  rest reward evaluate REWARD mqm --path FILE   how far it agrees with people, beside trivial rewards
  rest reward attack REWARD mqm --path FILE     how often corrupted translations score above honest ones
  rest grow FILE[:variant] --out DIR --g 1      sample, score and store one Grow step
  rest improve FILE[:variant] --out DIR --g 1 --i 1    fine-tune on the rows that pass
  rest ppo FILE[:variant] --out DIR --ppo.rollouts 200    online RL from BC, for comparison
  rest evaluate FILE[:variant] --out DIR --policy improve-1-1    reward and metrics on test
  rest best-of-n FILE[:variant] --out DIR --samples 64    what the best of N samples is worth, for every N
  rest study FILE[:group] --out DIR --seeds 0 1 2    variants x seeds, what they share made once, one table
  rest human-eval export DIR --policies improve-1-1 --sheet S --key K    a blind sheet for raters
  rest human-eval import DIR --sheets S1 S2 --key K      what the filled sheets say
  rest report DIR                               the table, report.md and report.html of a run; --live 30 follows it
  rest translate DIR < sources > translations   with the last policy of a run, or a stage's
  rest export DIR --out FOLDER                  the same policy for Hugging Face `transformers` and CTranslate2
  rest inspect DIR                              counts, rewards, best and worst rows of a scored dataset
  rest doctor                                   what of this machine matters to rest, and how to mend it
  rest completion bash                          commands, flags and files at the Tab key; zsh too

With --distributed, what makes a run is one of several processes that make it together (scripts/launch).
FILE is a Python file that builds an Experiment, such as experiments/synthetic.py, or a folder that `rest init` made,
whose run is then in DIR/run. Every setting is a flag: `rest run FILE --help` shows what to change first, --help-all
lists them. REWARD is a run's folder with a learned reward, or a Python function as module:function; human ratings are
mqm, mlqe-pe, table, votes or rankings.
"""

COMMANDS = {  # the module in rest/commands/ and the function
    "init": "init.init",
    "run": "run.run",
    "plan": "plan.plan",
    "bc": "run.bc",
    "reward train": "run.reward_train",
    "reward evaluate": "reward.evaluate_reward",
    "reward attack": "reward.attack_reward",
    "grow": "run.grow",
    "improve": "run.improve",
    "ppo": "run.ppo",
    "evaluate": "run.evaluate",
    "best-of-n": "run.best_of_n",
    "study": "study.study",
    "human-eval export": "human.export",
    "human-eval import": "human.import_",
    "report": "report.report",
    "translate": "translate.translate_lines",
    "export": "export.export",
    "inspect": "inspect.inspect",
    "doctor": "doctor.doctor",
    "completion": "completion.completion",
}

EXAMPLES = {  # what every help begins with
    "init": "rest init mine --source train.de --target train.en",
    "run": "rest run experiments/synthetic.py --out runs/demo",
    "plan": "rest plan experiments/synthetic.py --out runs/demo",
    "bc": "rest bc experiments/synthetic.py --out runs/demo --bc.train.max-steps 500",
    "reward train": "rest reward train experiments/synthetic.py --out runs/demo",
    "reward evaluate": "rest reward evaluate runs/demo table --path ratings.tsv",
    "reward attack": "rest reward attack my_reward.py:quality table --path ratings.tsv",
    "grow": "rest grow experiments/synthetic.py --out runs/demo --g 1",
    "improve": "rest improve experiments/synthetic.py --out runs/demo --g 1 --i 2",
    "ppo": "rest ppo experiments/synthetic.py --out runs/demo --ppo.rollouts 200",
    "evaluate": "rest evaluate experiments/synthetic.py --out runs/demo --policy improve-1-2 --decode mbr",
    "best-of-n": "rest best-of-n experiments/synthetic.py --out runs/demo --samples 64",
    "study": "rest study experiments/synthetic_improve.py:losses --out runs/losses --seeds 0 1 2",
    "human-eval export": "rest human-eval export runs/demo --policies improve-1-2 --sheet sheet.csv --key key.json",
    "human-eval import": "rest human-eval import runs/demo --sheets ann.csv ben.csv --key key.json",
    "report": "rest report runs/demo",
    "translate": "rest translate runs/demo < sources.txt > translations.txt",
    "export": "rest export runs/demo --out exported",
    "inspect": "rest inspect runs/demo/grow-1 --where 'reward > 0.9'",
    "doctor": "rest doctor",
    "completion": "rest completion bash >> ~/.bashrc",
}
