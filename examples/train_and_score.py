"""Train a reward model on the sample preferences, save it, and score two answers:  python examples/train_and_score.py BASE_MODEL OUTPUT"""

import sys

from palate import RewardConfig, RewardTrainer, load_sample, load_scorer

base_model, output = sys.argv[1:3]

trainer = RewardTrainer(
    model=base_model,
    args=RewardConfig(output_dir=output, max_length=512, center_rewards_coefficient=0.01, max_steps=20, chat_template_path="plain", report_to="none"),
    train_dataset=load_sample("train"),
    eval_dataset=load_sample("test"),
)
trainer.train()
print(trainer.evaluate())
trainer.save_model()

question = {"role": "user", "content": "How do I boil an egg?"}
answers = ["Ten minutes in boiling water, then cold water.", "Why would anyone want to know that?"]
scorer = load_scorer(output)
print(scorer.score([[question, {"role": "assistant", "content": answer}] for answer in answers]))
